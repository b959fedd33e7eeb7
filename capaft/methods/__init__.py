"""The methods: one file each, and the stack that composes them."""

from __future__ import annotations

from capaft.methods.host import Host
from capaft.methods.lora import Lora

HOSTS: dict[str, type[Host]] = {host.name: host for host in (Lora,)}
