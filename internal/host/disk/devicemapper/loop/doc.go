// Package loop attaches files as loop devices, by ioctl, so that nothing leaks whoever dies and
// nothing is taken from whom uses it.
//
// # Terms
//
// A loop device stands for a file, read-only or for reading and writing. All of ours clear
// themselves (LO_FLAGS_AUTOCLEAR): the kernel detaches the file when the last one closes the device,
// and a device-mapper table has the devices below it open. So the kernel counts the users, and a
// process that was killed has let go of its own. Ours carry a tag in lo_file_name,
// "roost-<id4>:<file>", and no others are touched.
//
// A Registry counts the users in this process: the first one attaches, the last one closes, and
// whether the device goes is the kernel's affair. A file is told by device and inode: it may have
// several names (hard links).
//
// # Rules
//
//   - Read-only loops are shared, among processes too: while looking for one and attaching it, the
//     file has an exclusive lock (flock).
//   - A loop for writing has one user, and a file has at most one such loop. The user holds an
//     exclusive lock on the loop's node, which ends with the process, and which keeps udev from
//     probing the device meanwhile (systemd.io/BLOCK_DEVICE_LOCKING).
//   - What a table still holds is found again: by a new Registry after a restart, and by the same
//     one when it has let go before the table did. Taking up a loop for writing that only a
//     table holds is not an error: it is how a stale device's disk gets its owner back.
//   - Release means that this user is done. Detach, for a collector, refuses what is in use.
//
// Direct I/O on the file is off unless asked for: base images are shared and belong into the page
// cache once. For a file that one VM writes to, it saves having each block in the cache twice, and
// the kernel falls back by itself where the file system cannot do it in units of 512 bytes.
//
// Needs Linux 5.8 (LOOP_CONFIGURE).
package loop
