#!/bin/bash
# Process 1 of the guest, whose root is in its memory: mounts, the checkout, the command, what it left in /out; then power off.
# Ports to the host: 1 and 2 the command's output and errors, 3 `booted` and `exit CODE`, 4 a tar of /out.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
export PYTHONPATH=/checkout PYTHONDONTWRITEBYTECODE=1 NETLLM_TESTBED_GUEST=1 GUEST_OUT=/out
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /checkout /out
mount -t devpts devpts /dev/pts
for folder in /run /tmp /dev/shm; do mount -t tmpfs tmpfs "$folder"; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sfn /proc/self/fd /dev/fd
echo "$(</etc/hostname)" >/proc/sys/kernel/hostname
ip link set dev lo up
modprobe -a virtio_pci virtio_console tun
for ((i = 0; i < 50; i++)); do [ -c /dev/vport0p4 ] && break; sleep 0.1; done
exec 3>/dev/vport0p3
echo booted >&3
tar -C /checkout -xf /dev/nvme0n1
mkfifo /run/stdout /run/stderr  # a port can't be opened twice, so what the command gets are pipes
cat /run/stdout >/dev/vport0p1 3>&- &
cat /run/stderr >/dev/vport0p2 3>&- &
cd /checkout
bash /checkout/.guest-command </dev/null >/run/stdout 2>/run/stderr 3>&-
code=$?
for ((i = 0; i < 20; i++)); do [ -z "$(jobs -rp)" ] && break; sleep 0.1; done  # what it left running may hold the pipes
[ -z "$(ls -A /out)" ] || tar -C /out -c . >/dev/vport0p4
echo "exit $code" >&3
exec 3>&-
echo o >/proc/sysrq-trigger
sleep 60
