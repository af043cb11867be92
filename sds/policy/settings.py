"""The ``policy:`` section of a configuration, and the initial state that follows from it.

Owns that section's form, for the agent and the authority. Invariant: the keys that may sign come
from here (in a confidential guest: from the measured image), never from the policy's own file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, StrictInt, model_validator

from sds.errors import ConfigurationError
from sds.files import is_folder
from sds.settings.field_types import PathField, Written
from sds.settings.paths import parse_path

if TYPE_CHECKING:
    from sds.identity import TrustDomain
    from sds.policy.keys import VerificationKey
    from sds.policy.succession import PolicySuccession
    from sds.policy.threshold import TrustedKeys

_PEM = "-----BEGIN"


def _key_place(text: str) -> str:
    """Check a key's PEM text, or the path of its file."""
    if not text.lstrip().startswith(_PEM):
        parse_path(text)
    return text


KeyPlace = Annotated[str, AfterValidator(_key_place)]


class PolicySettings(Written):
    """Where the signed policy is and who may sign it.

    Attributes:
        file: a file that `sds policy sign` wrote.
        directory: a directory of such files (``*.json``). All are offered, and the highest epoch
            that may be in force wins. For key changes, and for Kubernetes' mounted ConfigMaps.
        keys: the public keys, each a path or the PEM text itself.
        threshold: how many of them must have signed; may be left out with one key.
        min_epoch: lower epochs are never accepted, even after a restart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    file: PathField | None = None
    directory: PathField | None = None
    keys: Annotated[list[KeyPlace], Field(min_length=1, max_length=64)]
    threshold: Annotated[StrictInt, Field(ge=1)] | None = None
    min_epoch: Annotated[StrictInt, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.file is None) == (self.directory is None):
            raise ValueError("set file or directory, and not both")
        if self.threshold is None and len(self.keys) > 1:
            raise ValueError("set threshold: how many of the keys must sign")
        return self

    def trusted(self) -> TrustedKeys:
        """Read the keys.

        Raises:
            ConfigurationError: a key cannot be read, or the threshold cannot be reached.
        """
        # Imported lazily, so that an agent without a signed policy never loads the verifier.
        from sds.policy.threshold import TrustedKeys  # noqa: PLC0415  as above

        return TrustedKeys(
            keys=tuple(_key(text, number) for number, text in enumerate(self.keys, start=1)),
            threshold=self.threshold or 1,
        )

    def start(self, trust_domain: TrustDomain) -> PolicySuccession:
        """Return what an agent or authority with this configuration starts with.

        Raises:
            ConfigurationError: see :meth:`trusted`; or a directory has the place of the file, or a
                file that of the directory.
        """
        if self.file is not None and is_folder(self.file):
            raise ConfigurationError(
                f"policy.file: {self.file} is a directory", advice="name it as policy.directory"
            )
        if self.directory is not None and not is_folder(self.directory):
            raise ConfigurationError(
                f"policy.directory: there is no directory {self.directory}",
                advice="name a file as policy.file",
            )
        from sds.policy.succession import PolicySuccession  # noqa: PLC0415  as above

        return PolicySuccession(
            trust_domain=trust_domain, trusted=self.trusted(), min_epoch=self.min_epoch
        )

    @property
    def place(self) -> Path:
        """Return the file or directory."""
        place = self.file or self.directory
        assert place is not None
        return place


def _key(text: str, number: int) -> VerificationKey:
    from sds.policy.keys import read_verification_key, verification_key  # noqa: PLC0415  as above

    if text.lstrip().startswith(_PEM):
        return verification_key(text, name=f"key-{number}")
    return read_verification_key(Path(text))
