package firecracker

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

const writableByOthers = 0o022

// trusted refuses a file that somebody else could have written or could exchange: the jailer and
// what is put into a jail are believed. In a directory with the sticky bit nobody can exchange
// what is root's.
func trusted(path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return invalid("file", path, err.Error())
	}
	info, err := os.Stat(abs)
	if err != nil {
		return invalid("file", path, err.Error())
	}
	if !info.Mode().IsRegular() {
		return invalid("file", path, "not a regular file")
	}
	if !ours(info) || info.Mode().Perm()&writableByOthers != 0 {
		return invalid("file", path, "others than root can write it")
	}
	for dir := filepath.Dir(abs); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return invalid("file", path, err.Error())
		}
		if open := info.Mode().Perm()&writableByOthers != 0 && info.Mode()&os.ModeSticky == 0; open || !ours(info) {
			return fault.New(fault.Invalid, "file", path, "others than root can write to "+dir).
				WithHint("chown root " + dir + " && chmod go-w " + dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func ours(info os.FileInfo) bool {
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	return uid == 0 || uid == os.Geteuid()
}

// private tells whether only root comes to a file by its path.
func private(path string) bool {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o011 == 0 {
			return true
		}
		if dir == filepath.Dir(dir) {
			return false
		}
	}
}

func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	if _, err = io.Copy(dst, src); err == nil {
		err = dst.Chmod(0o444) // whatever the umask
	}
	if cerr := dst.Close(); err == nil {
		err = cerr
	}
	return err
}

func invalid(field string, value any, cause string) error {
	return fault.New(fault.Invalid, field, fmt.Sprintf("%v", value), cause)
}
