// Package disktest is the contract suite of package disk: Run holds a driver to every
// sentence of it, reading and writing disks as a VM would. How a VM opens an attachment
// comes from the caller; for drivers whose attachments are files, OpenFiles runs QEMU's
// storage daemon.
//
// Disks are 64 MiB, and the whole suite takes seconds. The random test logs its seed;
// DISKTEST_SEED repeats it.
package disktest
