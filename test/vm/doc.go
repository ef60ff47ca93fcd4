// Package vm is the in-VM lane: it runs one program, as a rule a test binary, in a Linux VM of its
// own. The reference machine's kernel has neither device-mapper nor a KVM that runs kernels; Debian's
// kernel under QEMU's translator (TCG) has both, KVM nested in the emulated CPU.
//
//	make vmtest PKG=./internal/host/disk/devicemapper/dm RUN=TestRemove
//	go test -exec "$PWD/.cache/bin/lane disk --" ./internal/host/disk/devicemapper/...
//	.cache/bin/lane host -v -tool strace -file HOST=/GUEST -tree FOLDER=/GUEST -- PROGRAM ARGS
//
// # Shapes
//
// disk: 1 vCPU, 1 GB; device-mapper (snapshot, zero, linear, error, flakey, delay), loop, ext4, EROFS,
// overlayfs; e2fsprogs and fio. 3 to 4 s to the program's first line.
//
// host: 2 vCPUs, 3 GB; also /dev/kvm, tun, veth, nftables with NAT and conntrack; QEMU, nft, ip. 5 s.
//
// Both have userfaultfd, cgroup v2 with all controllers for children, a root that can be left by
// pivot_root, lo, and no other network. There are no modprobe, no shell and no Go inside.
//
// # What goes in
//
// The program, the working directory with all below it (at the same path: testdata is there), the
// shape's tools with their libraries, files (-file) and the variables ROOST_* and those that
// ROOST_LANE_ENV names go into the initramfs, which is the root file system, in memory. Folders (-tree)
// and images (-drive) are read-only disks. /tmp, the guest's TMPDIR, is a sparse ext4 disk of 6 GB.
// This program itself is the guest's init (package guest).
//
// # What comes out
//
// Standard output and error, live, by a virtio-serial port each; by one when outside both go to one
// file, as under go test, so that lines stay whole and in order and -json tells skips from failures.
// A third port carries the end: its exit status is the lane's. Files that the program writes stay in
// the VM: flags like -coverprofile are refused.
//
// # Failure
//
// The exit status is 125, with the console's end, when there is none of the program's: the kernel
// panicked (an oops is a panic), the VM did not start in four minutes, or the program did not end a
// minute after its own -test.timeout, and then not by SIGQUIT either; the
// console then has the stacks of tasks that wait in the kernel. A program that succeeds and leaves
// a mapping, loop device, mount, network interface or process fails, naming them (-keep-left: does not).
//
// QEMU dies with the lane, however that dies, and its files have no names: nothing is left. The
// kernel is downloaded once, to .cache/vmmtest.
package vm
