package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// Remove takes the name of a template away that this installation made; one without a name is kept by
// digest, until Sweep. A name that nothing has is removed.
func (s *Store) Remove(by, name string) error {
	if err := ValidName(name); err != nil {
		return err
	}
	err := s.locked(func() error {
		var t Template
		path := s.path(templatesDir, name+".json")
		err := readJSON(path, &t)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = t.removable(by)
		}
		if err == nil {
			err = s.completeManifests() // those who stand on it find it by digest
		}
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
		return syncPath(s.path(templatesDir))
	})
	return fail(err, "remove template", name)
}

func (t Template) removable(by string) error {
	switch {
	case t.Made == nil:
		return fault.New(fault.FailedPrecondition, "", "", "the host builds it from a recipe")
	case t.Made.By != by:
		return fault.New(fault.FailedPrecondition, "", "", "another installation has made it").
			WithHint("delete it there: the image directory is shared")
	}
	return nil
}

// Unused are the templates that this installation made, that have no name any more and whose digest
// used denies. SizeBytes is what their files take, those aside that others share.
func (s *Store) Unused(by string, used func(digest string) bool) (unused []Template, err error) {
	err = s.locked(func() error {
		unused, err = s.unused(by, used)
		return err
	})
	for i := range unused {
		s.absolute(&unused[i])
	}
	return unused, fail(err, "look for unused templates in", s.dir)
}

func (s *Store) absolute(t *Template) {
	for _, f := range t.pointers() {
		f.Path = s.path(f.Path)
	}
}

// unused runs under the store's lock. Paths are the manifests'.
func (s *Store) unused(by string, used func(digest string) bool) ([]Template, error) {
	named, err := s.namedDigests()
	if err != nil {
		return nil, err
	}
	paths, err := filepath.Glob(s.path(manifestsDir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []Template
	for _, path := range paths {
		var t Template
		if err := readJSON(path, &t); err != nil {
			s.log.Error("leaving out a broken manifest", "manifest", path, "error", err)
			continue
		}
		if t.removable(by) != nil || filepath.Base(path) != t.Digest+".json" || named[t.Digest] || used(t.Digest) {
			continue
		}
		all = append(all, s.measured(t))
	}
	return all, nil
}

// namedDigests are the digests that a name stands for, whoever gave it. A name that cannot be read may
// stand for any.
func (s *Store) namedDigests() (map[string]bool, error) {
	paths, err := filepath.Glob(s.path(templatesDir, "*.json"))
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, path := range paths {
		var t Template
		if err := readJSON(path, &t); err != nil {
			return nil, fail(err, "read manifest", path)
		}
		named[t.Digest] = true
	}
	return named, nil
}

func (s *Store) measured(t Template) Template {
	t.SizeBytes = 0
	for _, f := range []File{t.Disk, t.Tree} {
		if n, err := allocated(s.path(f.Path)); err == nil {
			t.SizeBytes += n
		}
	}
	return t
}

// Sweep deletes what Unused lists: warm memory, manifest, and the blobs that no other manifest names.
// The caller sees to it that nobody begins to use one meanwhile. It returns what it has deleted; what
// failed is found again by the next.
func (s *Store) Sweep(by string, used func(digest string) bool) ([]Template, error) {
	unused, err := s.Unused(by, used)
	if err != nil {
		return nil, err
	}
	var gone []Template
	var errs []error
	for _, t := range unused {
		if err := s.sweep(t, by, used); err != nil {
			errs = append(errs, fail(err, "delete template", t.Digest))
			continue
		}
		gone = append(gone, t)
	}
	return gone, errors.Join(errs...)
}

// sweep removes warm memory first: a template without some makes new, and memory without its template
// would be found by nobody.
func (s *Store) sweep(t Template, by string, used func(digest string) bool) error {
	if err := s.removeWarmOf(t.Digest); err != nil {
		return err
	}
	return s.locked(func() error {
		still, err := s.unused(by, used)
		i := slices.IndexFunc(still, func(u Template) bool { return u.Digest == t.Digest })
		if err != nil || i < 0 {
			return err
		}
		if err := os.Remove(s.path(manifestsDir, t.Digest+".json")); err != nil {
			return err
		}
		if err := syncPath(s.path(manifestsDir)); err != nil {
			return err
		}
		return s.removeUnnamed(still[i])
	})
}

// removeUnnamed removes a template's blobs but those that another manifest stands on.
func (s *Store) removeUnnamed(t Template) error {
	named, err := s.namedBlobs()
	if err != nil {
		return err // Open will do it
	}
	var ids []string
	for _, f := range t.files() {
		id := blobOf(f)
		if !named[id] && digestForm.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return s.removeBlobs(ids)
}

// blobOf is the blob of a file as its manifest names it: blobs/<id>/<name>.
func blobOf(f File) string { return strings.Split(filepath.ToSlash(f.Path)+"//", "/")[1] }

func (s *Store) removeWarmOf(digest string) error {
	paths, err := filepath.Glob(s.path(warmDir, "*", warmJSON))
	if err != nil {
		return err
	}
	for _, path := range paths {
		var m warmManifest
		if err := readJSON(path, &m); err != nil || m.Key.Image != digest || m.Key.ID() != filepath.Base(filepath.Dir(path)) {
			continue
		}
		if err := s.RemoveWarm(m.Key); err != nil {
			return err
		}
	}
	return nil
}
