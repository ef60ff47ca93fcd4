package image

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/roosthq/roost/internal/fault"
)

// WithKernelELF is the template with its uncompressed kernel. One of an earlier Roost gets it
// now, and so do all that have the same kernel: their manifests name it from then on, and nothing
// else in them changes, least of all their digests. It is published once, however many ask.
func (s *Store) WithKernelELF(t Template) (_ Template, err error) {
	if t.hasELF() {
		return t, nil
	}
	if now, err := s.TemplateByDigest(t.Digest); err != nil || now.hasELF() {
		return now, err
	}
	// Outside the lock: it takes the better part of a second. Who comes second finds it made.
	work, err := s.newWorkspace()
	if err != nil {
		return Template{}, err
	}
	defer func() { err = errors.Join(err, work.remove()) }()
	f, err := makeKernelELF(work, t.Kernel)
	if err == nil {
		err = s.locked(func() error { return s.publishELF(filepath.Dir(f.Path), f, t.Kernel.SHA256) })
	}
	if err != nil {
		return Template{}, fail(err, "make vmlinux of template", t.Name)
	}
	now, err := s.TemplateByDigest(t.Digest)
	if err == nil && !now.hasELF() {
		err = fault.New(fault.NotFound, "find vmlinux of template", t.Name, "the template was removed meanwhile")
	}
	return now, err
}

// makeKernelELF extracts a verified kernel into a directory of its own.
func makeKernelELF(work *workspace, kernel File) (File, error) {
	if err := kernel.Verify(); err != nil {
		return File{}, err
	}
	dir, err := work.mkdir("vmlinux")
	if err != nil {
		return File{}, err
	}
	f := File{Name: elfName, Path: filepath.Join(dir, elfName)}
	if err := ELF(kernel.Path, f.Path); err != nil {
		return File{}, err
	}
	f.SHA256, f.SizeBytes, err = f.hash()
	return f, err
}

// publishELF moves the kernel in dir to its blob and names it in all manifests of the kernel that
// lack it. It runs under the store's lock.
func (s *Store) publishELF(dir string, f File, kernel string) error {
	id := blobID([]*File{&f}, dir)
	if _, err := s.addBlob(dir, id); err != nil {
		return err
	}
	if err := syncPath(s.path(blobsDir)); err != nil {
		return err
	}
	f.Path = filepath.Join(blobsDir, id, f.Name)
	// A name without a manifest by digest is completed from what has the name: that comes last.
	for _, in := range []string{manifestsDir, templatesDir} {
		paths, err := filepath.Glob(s.path(in, "*.json"))
		if err != nil {
			return err
		}
		for _, path := range paths {
			if err := s.nameELF(path, f, kernel); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) nameELF(path string, f File, kernel string) error {
	var t Template
	if err := readJSON(path, &t); err != nil {
		s.log.Error("leaving out a broken manifest", "manifest", path, "error", err)
		return nil
	}
	if t.Kernel.SHA256 != kernel || t.hasELF() && s.has(t.KernelELF) {
		return nil
	}
	t.KernelELF = f
	return writeJSON(path, t)
}

// has tells whether the file that a manifest names is there.
func (s *Store) has(f File) bool {
	_, err := os.Stat(s.path(f.Path))
	return err == nil
}
