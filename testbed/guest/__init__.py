"""A guest: Debian's cloud kernel in QEMU, for what the kernel at hand lacks (netem) and for timing that no other load disturbs."""
