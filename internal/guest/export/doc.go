// Package export serves the root file system as a tar stream, of which the host makes a template.
//
// # The stream
//
// PAX, in the order of names, a directory before what is in it. The root is "./", everything else
// has a name relative to it. Owners are numbers, modes have all twelve bits, times nanoseconds.
// Names, targets and attributes are bytes, whatever they are. A file's second name is a link to its
// first. Extended attributes that a template keeps, user.* and security.capability, are records
// SCHILY.xattr.NAME, with "=" and "%" of NAME as %3D and %25. A file with holes has the records
// ROOST.sparse.size, its size, and ROOST.sparse.map, "offset,length,…" of its data, which is all
// that follows. Sockets are left out: they are nothing without their process.
//
// # What it holds
//
// The root mount alone. Where another file system is mounted there is an empty directory, or an
// empty file. /proc/self/mountinfo tells, not the device numbers: gVisor's root has several. What
// makes a sandbox that one sandbox is left out or is as in a template that was built: see identity.go.
//
// # Failure rules
//
// The trailer Roost-Export is "whole" once everything was sent. Without it the stream is worth
// nothing; Roost-Export-Error then says why, if the guest knew. Nothing is changed in the guest. A
// file that is cut short while it is read fails the stream; what is to be consistent is frozen first.
package export
