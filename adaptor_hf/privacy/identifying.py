"""Which columns of a table look as if they named a person or a date of birth."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

# Words of column names, in English, German, Spanish and French; without accents, in lower case.
_IDENTIFYING = {
    "surname", "lastname", "firstname", "forename", "familyname", "givenname", "fullname", "middlename", "maidenname",
    "patientname", "patientsname", "personname", "initials", "birth", "birthday", "birthdate", "dateofbirth", "dob",
    "nachname", "vorname", "familienname", "patientenname", "geburt", "geburtsdatum", "geburtstag", "geburtsname",
    "nombre", "nombres", "apellido", "apellidos", "nacimiento", "fechanacimiento", "prenom", "naissance",
    "address", "street", "zipcode", "postcode", "adresse", "strasse", "plz", "direccion", "domicilio",
    "phone", "telephone", "telefon", "telefono", "mobile", "email", "mail", "ssn", "nhs", "passport", "insurance",
}  # fmt: skip
# With "name" (or "nom") beside it, a word that says whose name it is.
_NAME = {"name", "names", "nom", "noms"}
_PERSON = {
    "patient", "patients", "patienten", "person", "subject", "first", "last", "family", "given", "full", "middle",
    "maiden", "physician", "doctor", "referring", "mother", "father", "de", "famille",
}  # fmt: skip
_CARET_NAME = re.compile(r"^[^\W\d_][^^\d]*\^[^\d]*$")
_SHARE = 0.5


def identifying_columns(table: pa.Table) -> list[str]:
    """
    Columns whose name speaks of a person's name, birth date, address or number, or that hold DICOM person names
    (`DOE^JANE`) in most of their cells. A guess by names: a table without any of them may still identify people.

    Args:
        table (`pyarrow.Table`): Of any columns.

    Returns:
        `list[str]`: Names of such columns, in the table's order.
    """
    # By place: two columns may have one name.
    columns = zip(table.column_names, table.columns, strict=True)
    return [name for name, column in columns if _named_so(name) or _holds_person_names(column)]


def _named_so(name: str) -> bool:
    plain = unicodedata.normalize("NFKD", name.strip()).encode("ascii", "ignore").decode()
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", plain)]
    if "".join(words) in _NAME:
        return True
    if _NAME & set(words) and _PERSON & set(words):
        return True
    pairs = ["".join(pair) for pair in pairwise(words)]
    return bool(_IDENTIFYING & {*words, *pairs, "".join(words)})


def _holds_person_names(column: pa.ChunkedArray) -> bool:
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return False
    cells = [cell.strip() for cell in column.slice(0, 1000).to_pylist() if cell and cell.strip()]
    return bool(cells) and sum(bool(_CARET_NAME.match(cell)) for cell in cells) > _SHARE * len(cells)


__all__ = ["identifying_columns"]
