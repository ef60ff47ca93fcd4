package export

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// exporter walks one tree.
type exporter struct {
	ctx    context.Context
	root   string
	mounts map[string]bool
	out    *tar.Writer
	// links are the first names of files that have several.
	links map[inode]string
	buf   []byte
}

type inode struct{ dev, ino uint64 }

func (e *exporter) path(rel string) string { return filepath.Join(e.root, rel) }

func (e *exporter) tree() error {
	var st unix.Stat_t
	if err := unix.Stat(e.root, &st); err != nil {
		return fault.Wrap(err, "read", e.root)
	}
	return e.dir(".", &st)
}

// dir writes a directory and what is in it.
func (e *exporter) dir(rel string, st *unix.Stat_t) error {
	if err := e.header(rel, st, &tar.Header{Typeflag: tar.TypeDir, Name: rel + "/"}); err != nil {
		return err
	}
	entries, err := os.ReadDir(e.path(rel)) // in the order of names
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := e.entry(filepath.Join(rel, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// entry writes whatever has the name; what is gone by now was the guest's own.
func (e *exporter) entry(rel string) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Lstat(e.path(rel), &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fault.Wrap(err, "read", rel)
	}
	switch {
	case e.mounts[rel]:
		err = e.mountPoint(rel, &st)
	case leftOut(rel, &st):
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		if rel == "lost+found" && isEmpty(e.path(rel)) {
			return nil // the disk's own, and the next disk gets one
		}
		return e.dir(rel, &st) // an error names its own file
	case replaced[rel] != nil:
		err = e.replace(rel)
	case isHostKey(rel):
		err = e.out.WriteHeader(standIn(rel, nil, 0o600))
	default:
		err = e.node(rel, &st)
	}
	return fault.Wrap(err, "export", rel)
}

// mountPoint keeps the place. What is mounted there says how it looks, when is nobody's.
func (e *exporter) mountPoint(rel string, st *unix.Stat_t) error {
	h := &tar.Header{
		Typeflag: tar.TypeReg, Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
	}
	return e.out.WriteHeader(h)
}

func (e *exporter) replace(rel string) error {
	old, err := os.ReadFile(e.path(rel))
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a link that leads nowhere is replaced too
		return err
	}
	content := replaced[rel](old)
	if err := e.out.WriteHeader(standIn(rel, content, 0o644)); err != nil {
		return err
	}
	_, err = e.out.Write(content)
	return err
}

// node writes what is no directory.
func (e *exporter) node(rel string, st *unix.Stat_t) error {
	h := &tar.Header{Name: rel}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first := e.links[id]; first != "" {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return e.header(rel, st, h)
		}
		e.links[id] = rel
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag = tar.TypeReg
		return e.file(rel, st, h)
	case unix.S_IFLNK:
		target, err := os.Readlink(e.path(rel))
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default: // a socket
		return nil
	}
	return e.header(rel, st, h)
}

// header fills in what every entry has and writes it.
func (e *exporter) header(rel string, st *unix.Stat_t, h *tar.Header) error {
	h.Format, h.Mode, h.Uid, h.Gid = tar.FormatPAX, int64(st.Mode&0o7777), int(st.Uid), int(st.Gid)
	h.ModTime = time.Unix(st.Mtim.Unix())
	if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir {
		if err := e.attributes(rel, h); err != nil {
			return err
		}
	}
	return e.out.WriteHeader(h)
}

func isEmpty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) == 0
}

// attributes are those that a template keeps.
func (e *exporter) attributes(rel string, h *tar.Header) error {
	names, err := listAttributes(e.path(rel))
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") && name != "security.capability" {
			continue
		}
		value, err := attribute(e.path(rel), name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return err
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+escapeName.Replace(name)] = string(value)
	}
	return nil
}

// escapeName: a record's key ends at the first "=".
var escapeName = strings.NewReplacer("%", "%25", "=", "%3D")

func listAttributes(path string) ([]string, error) {
	raw, err := grown(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	return strings.FieldsFunc(string(raw), func(r rune) bool { return r == 0 }), err
}

func attribute(path, name string) ([]byte, error) {
	return grown(func(buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
}

// grown calls read with a buffer that is large enough.
func grown(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := read(buf)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
