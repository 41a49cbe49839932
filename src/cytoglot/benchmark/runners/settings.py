"""What `runner.toml` says of a model: its Python, requirements, files and what its script reads."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from cytoglot.config import Settings

HOST = "host"
"""the Python that cytoglot itself runs in"""
Option = bool | int | float | str


class NeededFile(Settings):
    """A file of weights or a table that the script reads."""

    name: str
    """path in the folder of weights, with `/`"""
    what: str
    """what it holds, and where it can be had, in a few words"""
    url: str | None = None
    """where `cytoglot runner build` downloads it from; needs `sha256`"""
    sha256: str | None = None
    """64 hex digits; a file with another checksum is refused. Without, any file of the name is taken"""

    @field_validator("sha256")
    @classmethod
    def _is_sha256(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError(f"a checksum has 64 lower-case hex digits, found {value!r}")
        return value


class SourceCode(Settings):
    """A public repository whose code the script imports, where there is no package to install."""

    url: str
    """of a git repository"""
    commit: str
    """40 hex digits"""
    folder: str = "."
    """folder in the repository that goes on the search path of the script"""

    @field_validator("commit")
    @classmethod
    def _is_commit(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{40}", value):
            raise ValueError(f"a commit has 40 lower-case hex digits, found {value!r}")
        return value


class RunnerSettings(Settings):
    """The content of `runner.toml`."""

    description: str
    """one line"""
    version: str
    """of the model or of its package"""
    python: str
    """version that the environment has, such as "3.11"; "host" for the one that cytoglot runs in"""
    requirements: tuple[str, ...] = ()
    """what `requirements.lock`, beside this file, was made from, and what is installed where there is no lock"""
    files: tuple[NeededFile, ...] = ()
    """weights and tables"""
    code: tuple[SourceCode, ...] = ()
    """repositories that `cytoglot runner build` fetches"""
    reads: tuple[Literal["batch", "label"], ...] = ()
    """columns of obs that the script is given; the others, and so the labels of most models, never reach it"""
    sees_all_cells: bool = False
    """whether the model is fitted on the cells that it embeds, those of the test too"""
    options: dict[str, Option] = Field(default_factory=dict)
    """every option of the script with its default; `--set NAME=VALUE` changes one"""
    code_licence: str = "not stated"
    """of the public code"""
    weights_licence: str = "not stated"
    """of the weights"""
    source: str = ""
    """address of the code or of the weights"""
    tested: str
    """what was run, and what could not be"""

    @field_validator("python")
    @classmethod
    def _is_python(cls, value: str) -> str:
        if value != HOST and not re.fullmatch(r"3\.\d+", value):
            raise ValueError(f'expected "host" or a version such as "3.11", found {value!r}')
        return value

    @field_validator("files")
    @classmethod
    def _downloads_have_checksums(cls, value: tuple[NeededFile, ...]) -> tuple[NeededFile, ...]:
        for file in value:
            if file.url is not None and file.sha256 is None:
                raise ValueError(f"the file {file.name!r} has a url, so it needs a sha256")
        return value
