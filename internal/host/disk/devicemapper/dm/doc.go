// Package dm drives the kernel's device-mapper by ioctl: no dmsetup, no libdevmapper, no udev.
//
// # Terms
//
// A device has a name, a UUID and up to two tables: the live one, which serves I/O, and the
// inactive one, which Load put there and the next Resume makes live. A table is a list of
// targets, each a range of sectors (512 bytes) and what serves it. Devices are given as numbers
// (unix.Mkdev's form) wherever the kernel takes them: a number means the same in every mount
// namespace, a path does not.
//
// # States
//
//	Create → no table → Load → inactive table → Resume → live ⇄ Suspend / Resume
//	Remove → gone, or, while somebody has it open, deferred: gone when the last one closes it
//
// Make is the first line in one call (three ioctls). A live device is changed by Suspend, Load,
// Resume: its number and node stay, and whoever has it open notices nothing but the wait. A
// device that is loaded before it is suspended has its new table built while the old one still
// serves writes: a snapshot target reads its exceptions at Load, so load those after Suspend.
//
// A table opens the devices below it for as long as it exists: a loop device with LO_FLAGS_AUTOCLEAR
// lives as long as a table stands on it. A read-only table opens them for reading only.
//
// # Failure rules
//
// Every method is one ioctl and either happens or not, except Make, which undoes what it did, and
// Remove. Remove is idempotent (ENXIO, "no such device", is done); it retries on EBUSY alone, from
// 5 to 200 ms apart, until its context ends, and then asks the kernel for a deferred removal:
// the error then is ErrDeferred, and nothing will be left once the last user has closed the device.
// Give it a context with a deadline. A deferred device still has its name: Rename it when the name
// is needed at once.
//
// Kinds: fault.NotFound no device of that name; fault.AlreadyExists name or UUID is taken;
// fault.Invalid a table that the kernel refused (why is in its log only); fault.FailedPrecondition
// no device-mapper, or a device in use.
package dm
