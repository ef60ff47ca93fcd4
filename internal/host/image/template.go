package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// File is an immutable file of the store.
type File struct {
	// Name without directory: "vmlinuz", "virtio_blk.ko", "disk.ext4", "tree.erofs".
	Name string `json:"name"`
	// Path is absolute for callers; in a manifest it is relative to the store.
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	// Sparse: SHA256 is of the content with its blocks of zeros counted and not read (hashSparse).
	Sparse bool `json:"sparse,omitempty"`
}

// Template is what sandboxes start from.
type Template struct {
	Name string `json:"name"`
	// Digest of all that the template holds: kernel, modules, disk, tree, default user. It is
	// the same whichever runtime a sandbox has.
	Digest    string    `json:"digest"`
	CreatedAt time.Time `json:"created_at"`
	// RecipeDigest tells whether a recipe has changed since.
	RecipeDigest  string `json:"recipe_digest"`
	DefaultUser   string `json:"default_user"`
	KernelVersion string `json:"kernel_version"`
	Kernel        File   `json:"kernel"`
	// KernelELF is the same kernel, uncompressed; empty in a template of an earlier Roost that
	// nobody has asked for it yet (Store.WithKernelELF).
	KernelELF File `json:"kernel_elf,omitzero"`
	// Modules in the order in which they must be loaded.
	Modules []File `json:"modules"`
	Disk    File   `json:"disk"`
	// Tree is the disk's content as an EROFS image; empty in a template of an earlier Roost.
	Tree File `json:"tree,omitzero"`
	// DiskBytes is the disk's virtual size and so the smallest disk of a sandbox.
	DiskBytes int64 `json:"disk_bytes"`
	// SizeBytes is the real use on this host's disk.
	SizeBytes int64 `json:"size_bytes"`
	// Made is set of a template that was made of a sandbox, which can be removed; nil of one that
	// the host builds from a recipe.
	Made *Made `json:"made,omitempty"`
}

// KernelPath is the bzImage.
func (t Template) KernelPath() string { return t.Kernel.Path }

// KernelELFPath is the uncompressed kernel; "" if the template has none yet.
func (t Template) KernelELFPath() string { return t.KernelELF.Path }

// DiskPath is the raw root disk; never write to it.
func (t Template) DiskPath() string { return t.Disk.Path }

// TreePath is the EROFS image, read-only for all; "" if the template was built without one.
func (t Template) TreePath() string { return t.Tree.Path }

// ModulePaths are the kernel modules in load order.
func (t Template) ModulePaths() []string {
	paths := make([]string, len(t.Modules))
	for i, m := range t.Modules {
		paths[i] = m.Path
	}
	return paths
}

// ModuleNames are the modules' file names in load order, without directory.
func (t Template) ModuleNames() []string {
	names := make([]string, len(t.Modules))
	for i, m := range t.Modules {
		names[i] = m.Name
	}
	return names
}

// Verify reads every file of the template and compares it with the manifest.
func (t Template) Verify() error {
	for _, f := range t.files() {
		if err := f.Verify(); err != nil {
			return fault.Wrap(err, "verify template", t.Name)
		}
	}
	return nil
}

// Verify reads the file and compares it with its digest.
func (f File) Verify() error {
	sum, size, err := f.hash()
	if err != nil {
		return fail(err, "read", f.Path)
	}
	if size != f.SizeBytes || sum != f.SHA256 {
		return fault.New(fault.FailedPrecondition, "verify", f.Path, "content differs from its manifest").
			WithHint("build the template again: roost template build")
	}
	return nil
}

func (f File) hash() (sum string, size int64, err error) {
	if f.Sparse {
		return hashSparse(f.Path)
	}
	return hashFile(f.Path)
}

func (t Template) files() []File {
	files := t.seen()
	if t.hasELF() {
		files = append(files, t.KernelELF)
	}
	return files
}

// seen are the files that a guest can see.
func (t Template) seen() []File {
	files := []File{t.Kernel, t.Disk}
	if t.hasTree() {
		files = append(files, t.Tree)
	}
	return append(files, t.Modules...)
}

func (t Template) hasELF() bool  { return t.KernelELF.Name != "" }
func (t Template) hasTree() bool { return t.Tree.Name != "" }

// digest covers what a guest can see of the template, not when or how it was made.
func (t Template) digest() string {
	type part struct{ Name, SHA256 string }
	var parts []part
	for _, f := range t.seen() {
		parts = append(parts, part{f.Name, f.SHA256})
	}
	return hashJSON(struct {
		Parts       []part
		DefaultUser string
	}{parts, t.DefaultUser})
}

var nameForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ValidName refuses names that are no template's, path tricks included.
func ValidName(name string) error {
	if !nameForm.MatchString(name) {
		return fault.New(fault.Invalid, "use template name", name, "not a template name").
			WithHint("a name has 1 to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit")
	}
	return nil
}

// Template finds the template that has the name now.
func (s *Store) Template(name string) (Template, error) {
	if err := ValidName(name); err != nil {
		return Template{}, err
	}
	t, err := s.loadTemplate(s.path(templatesDir, name+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Template{}, fault.New(fault.NotFound, "find template", name, "no such template on this host").
			WithHint("`roost template ls` lists what there is; `make run` builds base")
	}
	return t, err
}

// TemplateByDigest finds a template that a sandbox was made from, even when its name belongs
// to a newer one.
func (s *Store) TemplateByDigest(digest string) (Template, error) {
	if !digestForm.MatchString(digest) {
		return Template{}, fault.New(fault.Invalid, "find template by digest", digest, "not a sha256")
	}
	t, err := s.loadTemplate(s.path(manifestsDir, digest+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return Template{}, fault.New(fault.NotFound, "find template by digest", digest, "no such template on this host")
	}
	return t, err
}

// List gives the templates that have a name, by name. One that cannot be read is logged and
// left out: it must not hide the others.
func (s *Store) List() ([]Template, error) {
	paths, err := filepath.Glob(s.path(templatesDir, "*.json"))
	if err != nil {
		return nil, fail(err, "list templates in", s.dir)
	}
	slices.Sort(paths)
	var all []Template
	for _, path := range paths {
		t, err := s.loadTemplate(path)
		if err != nil {
			s.log.Error("leaving out a broken template", "manifest", path, "error", err)
			continue
		}
		all = append(all, t)
	}
	return all, nil
}

// loadTemplate reads a manifest, makes its paths absolute and checks that its files are there.
func (s *Store) loadTemplate(path string) (Template, error) {
	var t Template
	if err := readJSON(path, &t); err != nil {
		return Template{}, fail(err, "read manifest", path)
	}
	for _, f := range t.pointers() {
		if !filepath.IsLocal(f.Path) {
			return Template{}, fault.New(fault.Internal, "read manifest", path, "path leaves the store: "+f.Path)
		}
		f.Path = s.path(f.Path)
	}
	if t.hasELF() && t.KernelELF.present() != nil {
		t.KernelELF = File{} // an earlier Roost did not know what it is; it can be made again
	}
	t.SizeBytes = 0
	for _, f := range t.files() {
		if err := f.present(); err != nil {
			return Template{}, fault.Wrap(err, "read template", t.Name)
		}
		n, err := allocated(f.Path)
		if err != nil {
			return Template{}, fail(err, "read template", t.Name)
		}
		t.SizeBytes += n
	}
	return t, nil
}

func (t *Template) pointers() []*File {
	files := []*File{&t.Kernel, &t.Disk}
	if t.hasTree() {
		files = append(files, &t.Tree)
	}
	if t.hasELF() {
		files = append(files, &t.KernelELF)
	}
	for i := range t.Modules {
		files = append(files, &t.Modules[i])
	}
	return files
}

// present is the cheap check on every read; Verify is the thorough one.
func (f File) present() error {
	st, err := os.Stat(f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && st.Size() != f.SizeBytes:
		return fault.New(fault.FailedPrecondition, "open", f.Path, "missing or of another size than its manifest says").
			WithHint("build the template again: roost template build")
	default:
		return fail(err, "open", f.Path)
	}
}
