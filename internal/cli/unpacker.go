package cli

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// unpacker writes a tar archive below a folder. The archive comes from a sandbox, so it is
// taken as hostile: a name with ".." or a leading slash ends it with an error, os.Root keeps
// symlinks from leading a write outside, files are made new and renamed over what was there
// (never written through a link), and set-id bits and devices are dropped.
type unpacker struct {
	root    *os.Root
	fresh   bool // The folder itself is new and gets the archive's mode.
	leftOut func(name, what string)
	files   int
	dirs    []tar.Header
}

func (u *unpacker) unpack(archive io.Reader) error {
	in := tar.NewReader(archive)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return u.finishDirs()
		}
		if err != nil {
			return archiveError(err)
		}
		if err := u.entry(header, in); err != nil {
			return err
		}
	}
}

// archiveError keeps a broken connection's own words.
func archiveError(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return fault.New(fault.Internal, "read", "the sandbox's archive", err.Error())
}

func (u *unpacker) entry(header *tar.Header, data io.Reader) error {
	name, err := localEntry(header.Name)
	if err != nil {
		return err
	}
	if header.Typeflag != tar.TypeDir && name == "." {
		return hostile(header.Name)
	}
	if parent := filepath.Dir(name); parent != "." {
		if err := u.root.MkdirAll(parent, 0o777); err != nil {
			return unpackError(header.Name, err)
		}
	}
	return unpackError(header.Name, u.write(name, header, data))
}

func (u *unpacker) write(name string, header *tar.Header, data io.Reader) error {
	mode := fs.FileMode(header.Mode) & fs.ModePerm
	switch header.Typeflag {
	case tar.TypeDir:
		return u.dir(name, header)
	case tar.TypeReg:
		u.files++
		if err := writeIn(u.root, name, mode, data); err != nil {
			return err
		}
		return u.root.Chtimes(name, header.ModTime, header.ModTime)
	case tar.TypeSymlink:
		u.files++
		return replace(u.root, name, func(temp string) error { return u.root.Symlink(header.Linkname, temp) })
	case tar.TypeLink:
		return u.link(name, header)
	case tar.TypeXGlobalHeader:
		return nil
	default:
		u.leftOut(header.Name, "it is no file, folder or symlink")
		return nil
	}
}

// dir makes a folder that we can write to; its own mode comes last, when it is filled. A
// folder that was there keeps its mode: copying into /tmp must not close /tmp.
func (u *unpacker) dir(name string, header *tar.Header) error {
	made := u.fresh
	if name != "." {
		err := u.root.Mkdir(name, 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		made = err == nil
	}
	if !made {
		return u.isDir(name)
	}
	kept := *header
	kept.Name = name
	u.dirs = append(u.dirs, kept)
	return nil
}

func (u *unpacker) isDir(name string) error {
	info, err := u.root.Stat(name)
	if err == nil && !info.IsDir() {
		return errors.New("a folder cannot replace what is there")
	}
	return err
}

func (u *unpacker) link(name string, header *tar.Header) error {
	to, err := localEntry(header.Linkname)
	if err != nil {
		return err
	}
	u.files++
	return replace(u.root, name, func(temp string) error { return u.root.Link(to, temp) })
}

// finishDirs gives folders their mode and time, inner ones first.
func (u *unpacker) finishDirs() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		err := u.root.Chmod(d.Name, fs.FileMode(d.Mode)&fs.ModePerm)
		if err == nil {
			err = u.root.Chtimes(d.Name, d.ModTime, d.ModTime)
		}
		if err != nil {
			return unpackError(d.Name, err)
		}
	}
	return nil
}

// localEntry is an archive's name as a path below the folder, or an error when it leaves it.
func localEntry(name string) (string, error) {
	if path.IsAbs(name) || strings.Contains(name, "\x00") {
		return "", hostile(name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", hostile(name)
		}
	}
	clean := filepath.FromSlash(path.Clean(name))
	if !filepath.IsLocal(clean) {
		return "", hostile(name)
	}
	return clean, nil
}

func hostile(name string) error {
	return fault.New(fault.PermissionDenied, "", "", fmt.Sprintf("the sandbox's archive was refused: it would write outside the destination (%q)", name)).
		WithHint("do not trust this sandbox's files; nothing was written outside")
}

func unpackError(name string, err error) error {
	var f *fault.Error
	if err == nil || errors.As(err, &f) {
		return err
	}
	return &fault.Error{Kind: fault.KindOf(localError(err)), Op: "unpack", Object: fmt.Sprintf("%q", name), Err: err}
}

// writeIn writes a file below root under a temporary name and renames it into place.
func writeIn(root *os.Root, name string, mode fs.FileMode, data io.Reader) error {
	return replace(root, name, func(temp string) error {
		file, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
		if err != nil {
			return localError(err)
		}
		_, err = io.Copy(file, data)
		if err == nil && mode&0o200 == 0 {
			err = file.Chmod(mode)
		}
		return errors.Join(err, localError(file.Close()))
	})
}

// replace lets create make a temporary entry next to name and renames it over name. The
// temporary name is gone in every case: a rename between two names of one inode does nothing
// and would leave it.
func replace(root *os.Root, name string, create func(temp string) error) error {
	temp := filepath.Join(filepath.Dir(name), ".roost-cp-"+rand.Text())
	err := create(temp)
	if err == nil {
		err = root.Rename(temp, name)
	}
	_ = root.Remove(temp)
	return err
}
