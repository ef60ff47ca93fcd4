// Package devicemapper keeps the disk contract with the kernel's device-mapper snapshots: a VM
// gets a block device, and a live disk or layer is a copy-on-write file (package cow).
//
// # What Attach builds
//
//	loop (base, read-only, shared) ─ origin: linear + zero up to the disk's size
//	loop (layer 1, read-only) ────── snapshot, read-only, over the origin
//	loop (layer 2, read-only) ────── snapshot, read-only, over layer 1
//	loop (live disk) ─────────────── snapshot over the last one: the top, which the VM has
//
// All have the live disk's size: what a layer or the base does not reach reads as the zeros below.
// The devices of one live disk are its chain. The driver keeps nothing in memory: it finds a
// chain again by its names and, since a name says nothing, by what the top's table stands on: the
// loop device of the live disk's file, told by inode. Loops clear themselves, so a table that goes
// takes them along, and whoever dies leaves nothing but whole devices.
//
// A device cannot show the last bytes of a base whose size is not in sectors (512 bytes). The first
// file over such a base has them instead, from the beginning.
//
// # Seal under a running VM
//
// The top is suspended, so that all it has acknowledged is in the file; a read-only device is made
// of that file; the top's next table stands over it, with the next file; Switch runs; resume. The
// VM keeps its device, number and node, and notices a wait of milliseconds. The device stands still
// while Switch runs: Switch must not wait for the VM's I/O, and has nothing to do. What a VMM has
// acknowledged but keeps in the host's page cache, not flushed by the guest, may be on either side.
// An agent that dies before resume leaves a suspended device: the next Attach, Detach or Seal drops
// the table that was not used and lets it go on as it was.
//
// A copy of the file instead of a reload was measured and is no choice: see the package's benchmarks.
//
// # Failure rules
//
// A full host file system makes the kernel give a snapshot up for good ("invalid"): every later read
// and write of the VM fails, Seal is fault.DataLoss and says why. Other disks are not touched, nor is
// the base. Writes to blocks that a live disk has already need no room.
//
// Detach removes the top first and then down, each only when the one above is gone, so that no loop
// goes under a device that still stands. What a process has open is tried again until the context
// ends (30 seconds at most); then Detach fails, and the kernel removes the rest of the chain when it
// is closed. RemoveLive never deletes the file of a device that still stands. Cleanup of what failed
// runs on a context of its own.
//
// Only devices named roost-<id>- and loops tagged roost-<id>: are ever touched.
package devicemapper
