#!/bin/sh
# The first process of the guest: modules, the host's files under a layer of memory, then the guest's program.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo 3 > /proc/sys/kernel/printk
while read -r module; do insmod "/modules/$module" || echo "GUEST module $module failed"; done < /modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,ro,cache=loose hostroot /lower || echo "GUEST 9p failed"
mount -t tmpfs tmpfs /upper
mkdir -p /upper/changes /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changes,workdir=/upper/work overlay /host || echo "GUEST overlay failed"
mount -t proc proc /host/proc
mount -t sysfs sys /host/sys
mount -t devtmpfs dev /host/dev
mount -t tmpfs tmpfs /host/run
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
# The kernel hands words of its command line that it does not know to its first process, as variables.
chroot /host "$GUEST_PYTHON" -B "$GUEST_PROGRAM"
echo "GUEST ended with $?"
poweroff -f
