"""What `foundry_lab.service` asks of the child process it starts, `foundry_lab.runtime`."""

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What the child is to serve, and where it may write."""

    model: str
    """The alias."""
    home: str
    """A private folder for the log and the registration, removed at the end."""
    port: int
    """0: any free port."""
    log_level: str
    model_dir: str | None
    """The folder of a model of one's own; None: a model of the public catalog."""
    cache_dir: str
    """Where downloaded catalog models live."""
    catalog_url: str | None
    """Another catalog than Microsoft's; the tests have one."""
    download: bool
    """Whether a catalog model that is not on this machine may be downloaded."""
