package cli

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// packer writes a local folder as a tar archive, with names relative to it. It reads through
// an os.Root, so that a symlink swapped in meanwhile cannot lead it elsewhere.
type packer struct {
	root    *os.Root
	top     bool // Whether the folder itself is in the archive, as "./".
	leftOut func(name, what string)
	tar     *tar.Writer
	files   int
}

func (p *packer) pack(w io.Writer) error {
	p.tar = tar.NewWriter(w)
	err := fs.WalkDir(p.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || (name == "." && !p.top) {
			return err
		}
		return p.add(name)
	})
	if err != nil {
		return err
	}
	return p.tar.Close()
}

func (p *packer) add(name string) error {
	info, err := p.root.Lstat(name)
	if err != nil {
		return err
	}
	header := &tar.Header{
		Name: filepath.ToSlash(name), Mode: int64(info.Mode().Perm()), Format: tar.FormatPAX,
		ModTime: info.ModTime().Truncate(time.Second),
	}
	switch {
	case info.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		return p.tar.WriteHeader(header)
	case info.Mode().IsRegular():
		header.Typeflag, header.Size = tar.TypeReg, info.Size()
		p.files++
		return p.file(name, header)
	case info.Mode()&fs.ModeSymlink != 0:
		p.files++
		return p.symlink(name, header)
	default:
		p.leftOut(filepath.Join(p.root.Name(), name), "it is no file, folder or symlink")
		return nil
	}
}

func (p *packer) symlink(name string, header *tar.Header) error {
	to, err := p.root.Readlink(name)
	if err != nil {
		return err
	}
	header.Typeflag, header.Linkname = tar.TypeSymlink, to
	return p.tar.WriteHeader(header)
}

// file adds as many bytes as the header promised; what is appended meanwhile is not copied.
func (p *packer) file(name string, header *tar.Header) error {
	file, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := p.tar.WriteHeader(header); err != nil {
		return err
	}
	n, err := io.Copy(p.tar, io.LimitReader(file, header.Size))
	if err == nil && n < header.Size {
		return fmt.Errorf("read %s: it shrank while it was copied", filepath.Join(p.root.Name(), name))
	}
	return err
}
