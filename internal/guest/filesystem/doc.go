// Package filesystem serves filesystem.Filesystem: names, kinds and places of files. Contents
// go through packages files and archive.
//
// Paths are absolute, relative to the user's home, or start with "~". Work is done as root;
// what is made belongs to the user. A symlink reports its target's type and mode, with the
// link's own permissions and size.
//
// A watch starts when its start event is sent: every later change is reported. A watch whose
// kernel queue overflowed ends with resource_exhausted rather than miss events silently.
package filesystem
