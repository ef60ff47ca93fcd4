// Package boot takes a VM from the kernel's first user process to a working root file system
// and network. It needs nothing but the initramfs: no shell, no busybox. In gVisor, where the
// first process finds both, Inside does the rest.
//
// # The initramfs
//
//	/init              roost-guest
//	/roost/boot.json   Config; deleted once read, since it holds the control token
//	/roost/modules/    kernel modules, loaded in the order Config names them
//
// # Steps
//
// proc, sys, dev → boot.json → modules → root device → mount it at /newroot → delete the
// initramfs's files (they are memory) → move the mounts and chroot into it, as the same process
// → dev/pts, dev/shm, run, tmp, cgroup2 → network → names. Any failure is one line on the
// console and in the kernel log, then a reboot, which ends a VM started with -no-reboot.
package boot
