"""Sealed records: typed JSON files that say which key they belong to."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raycl.errors import StoreError, problems
from raycl.state.keys import SCHEMA
from raycl.state.sealed import seal, unseal

Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """Base of every model on disk: nothing is converted, nothing unknown is accepted, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class FileRecord(Strict):
    """The identity of one file."""

    sha256: Hex64
    bytes: int = Field(ge=0)
    """Size of the file."""

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The record of a file with this content."""
        return cls(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))

    def require(self, data: bytes, where: str) -> bytes:
        """`data` itself if it is the file this record describes; raises StoreError naming the file otherwise."""
        if len(data) != self.bytes:
            raise StoreError(f"{where} has {len(data)} bytes, {self.bytes} were written. {REMEDY}")
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise StoreError(f"{where} is not what was written: its SHA-256 is not {self.sha256}. {REMEDY}")
        return data


class Record(Strict):
    """Base of the JSON files of a store."""

    schema_version: Literal[1] = SCHEMA
    key: Hex64

    def to_bytes(self) -> bytes:
        """The content of the file, sealed. Raises TypeError or ValueError for a value JSON cannot hold."""
        return seal(self.model_dump())

    @classmethod
    def parse(cls, data: bytes, key: str, where: str) -> Self:
        """The record in a file that should belong to `key`; `where` is the file's name, for messages.

        Raises StoreError for JSON that is damaged, of another schema version, of another key, or has a wrong field.
        """
        fields = unseal(data, where)
        try:
            record = cls.model_validate(fields)
        except ValidationError as error:
            raise StoreError(f"{where} has wrong fields: {'; '.join(problems(error))}. {REMEDY}") from None
        if record.key != key:
            raise StoreError(f"{where} belongs to key {record.key}, not {key}: it was moved. {REMEDY}")
        return record


REMEDY = "Delete the folder of that key and run again, or restore it from a copy"
