package vm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// archive writes the first root file system: the kernel unpacks a cpio archive into memory.
// What is added twice stays what it was first.
type archive struct {
	w    *cpio.Writer
	seen map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: cpio.NewWriter(w), seen: map[string]bool{"": true, ".": true}}
}

func (a *archive) close() error { return a.w.Close() }

// skip makes the parents of a new name; true says that the name is there already.
func (a *archive) skip(name string) (bool, error) {
	if a.seen[name] {
		return true, nil
	}
	if err := a.folder(path.Dir(name)); err != nil {
		return false, err
	}
	a.seen[name] = true
	return false, nil
}

func (a *archive) folder(name string) error {
	name = inside(name)
	if skip, err := a.skip(name); skip || err != nil {
		return err
	}
	return a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755})
}

func (a *archive) link(name, to string) error {
	name = inside(name)
	if skip, err := a.skip(name); skip || err != nil {
		return err
	}
	return a.write(name, cpio.TypeSymlink|0o777, int64(len(to)), strings.NewReader(to))
}

func (a *archive) text(name string, data []byte) error {
	name = inside(name)
	if skip, err := a.skip(name); skip || err != nil {
		return err
	}
	return a.write(name, cpio.TypeReg|0o644, int64(len(data)), bytes.NewReader(data))
}

// file adds a file of the host; a link of the host becomes what it leads to.
func (a *archive) file(name, from string) error {
	name = inside(name)
	if skip, err := a.skip(name); skip || err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: not a file", from)
	}
	return a.write(name, cpio.TypeReg|cpio.FileMode(info.Mode().Perm()), info.Size(), f)
}

func (a *archive) write(name string, mode cpio.FileMode, size int64, from io.Reader) error {
	if err := a.w.WriteHeader(&cpio.Header{Name: name, Mode: mode, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(a.w, from); err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	return nil
}

// tree adds a folder of the host with all below it.
func (a *archive) tree(name, from string) error {
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		to := path.Join(name, rel)
		switch {
		case d.IsDir():
			return a.folder(to)
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return a.link(to, target)
		case d.Type().IsRegular():
			return a.file(to, p)
		}
		return nil // sockets and pipes
	})
}

// inside is a name as an archive has it.
func inside(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }
