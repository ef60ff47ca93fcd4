package image

import (
	"fmt"
	"io"
)

// File types of a cpio entry, from the mode of stat(2).
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeReg  = 0o100000
)

// newcWriter writes an initramfs in cpio's "newc" form, the one that the kernel reads. The
// cpio package that the tests read it back with cannot write device numbers. Errors stick:
// check that of close. All entries belong to root.
type newcWriter struct {
	w     io.Writer
	inode uint32
	err   error
}

func (c *newcWriter) dir(name string, perm uint32) { c.header(name, typeDir|perm, 0, 0, 0) }

func (c *newcWriter) char(name string, perm, major, minor uint32) {
	c.header(name, typeChar|perm, 0, major, minor)
}

func (c *newcWriter) file(name string, perm uint32, r io.Reader, size int64) {
	c.header(name, typeReg|perm, size, 0, 0)
	if c.err != nil {
		return
	}
	if _, c.err = io.CopyN(c.w, r, size); c.err == nil {
		c.pad(size)
	}
}

// close ends the archive, padded so that another can follow it.
func (c *newcWriter) close() error {
	c.header("TRAILER!!!", 0, 0, 0, 0)
	return c.err
}

func (c *newcWriter) header(name string, mode uint32, size int64, major, minor uint32) {
	if c.err == nil && size > 1<<32-1 {
		c.err = fmt.Errorf("%s is too large for an initramfs", name)
	}
	if c.err != nil {
		return
	}
	c.inode++
	const links, uid, gid, mtime, devMajor, devMinor, sum = 1, 0, 0, 0, 0, 0, 0
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.inode, mode, uid, gid, links, mtime, size, devMajor, devMinor, major, minor, len(name)+1, sum, name)
	if _, c.err = io.WriteString(c.w, head); c.err == nil {
		c.pad(int64(len(head)))
	}
}

// pad fills up to a multiple of four, given that what was written began at one.
func (c *newcWriter) pad(n int64) {
	_, c.err = c.w.Write(make([]byte, (4-n%4)%4))
}
