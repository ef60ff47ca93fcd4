// Package qcow2 keeps the disk contract with files: a live disk and a layer are qcow2
// images, a base is a raw image.
//
// The driver runs no process. It writes the few blocks of an empty image itself, since
// spawning qemu-img would cost a tenth of a sandbox's start, and it reads layers itself to
// merge and flatten them, since a program of QEMU's run as root would follow what a header
// names. Only the VM's own QEMU, under its own user, ever opens an image in QEMU.
//
// # Dialect
//
// Version 3, clusters of 64 KiB, 16-bit refcounts; no backing file, no external data file, no
// encryption, no compression, no internal snapshots, no incompatible features. What an image
// stands on is told by the caller. Live disk → layer changes the file's mode and owner, not
// its bytes. Because the L1 table keeps to one cluster, a disk has at most 4 TiB.
//
// # Failure rules
//
// A VM that broke out of its guest could have written anything into its live disk. Every
// image is checked before use and refused (fault.FailedPrecondition) when it is not of the
// dialect, so that a VMM is never handed one that names another file. Files are opened without
// following symbolic links. Offsets inside an image lead only into the same image, and what
// lies beyond its end reads as zeros, as in QEMU.
//
// Merge and Flatten write to a file without a name and link it to its own when it is synced:
// neither cancellation nor the death of the agent leaves anything behind. A full file system
// is fault.ResourceExhausted.
package qcow2
