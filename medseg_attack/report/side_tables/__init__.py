"""Tables of `medattack compare` below its first one."""
