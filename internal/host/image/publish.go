package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

// draft is a template whose files still lie in a workspace.
type draft struct {
	Template
	kernelDir string // vmlinuz and *.ko
	diskDir   string // disk.ext4
	treeDir   string // tree.erofs
	elfDir    string // vmlinux; "" if there is none
}

// publish moves a draft's files to where they belong and makes it the template of its name.
// The rename of templates/<name>.json is the commit point.
func (s *Store) publish(d draft) (Template, error) {
	if err := d.measure(); err != nil {
		return Template{}, fail(err, "publish template", d.Name)
	}
	var t Template
	err := s.locked(func() error {
		if err := s.completeManifests(); err != nil {
			return err
		}
		if taken, err := s.takes(d); err != nil || taken.Digest != "" {
			t = taken
			return err
		}
		added, err := s.addBlobs(&d)
		if err == nil {
			err = failpoint.Hit("image.publish.commit")
		}
		if err == nil {
			err = writeJSON(s.path(templatesDir, d.Name+".json"), d.Template)
		}
		if err != nil {
			return errors.Join(err, s.removeBlobs(added))
		}
		if err := s.completeManifests(); err != nil {
			return err
		}
		t, err = s.Template(d.Name)
		return err
	})
	return t, fail(err, "publish template", d.Name)
}

// takes refuses a name that another template has; a recipe's build takes its name from its older
// one. A template that is there already is the answer.
func (s *Store) takes(d draft) (Template, error) {
	if d.Made == nil {
		return Template{}, nil
	}
	t, err := s.Template(d.Name)
	switch {
	case fault.Is(err, fault.NotFound):
		return Template{}, nil
	case err != nil:
		return Template{}, err
	case t.Digest == d.Digest:
		return t, nil
	}
	return Template{}, taken(d.Name)
}

func taken(name string) error {
	return fault.New(fault.AlreadyExists, "take template name", name, "another template has it").
		WithHint("choose another name, or delete that one: roost template rm " + name)
}

func (d *draft) dirs() []string {
	dirs := []string{d.kernelDir, d.diskDir, d.treeDir}
	if d.elfDir != "" {
		dirs = append(dirs, d.elfDir)
	}
	return dirs
}

// measure hashes the files and makes them durable and read-only, before any lock is taken.
func (d *draft) measure() error {
	var g errgroup.Group // disk and tree are large
	for _, f := range d.pointers() {
		g.Go(func() (err error) {
			f.SHA256, f.SizeBytes, err = f.hash()
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, f := range d.pointers() {
		if err := os.Chmod(f.Path, 0o400); err != nil {
			return err
		}
		n, err := allocated(f.Path)
		if err != nil {
			return err
		}
		d.SizeBytes += n
	}
	d.DiskBytes = d.Disk.SizeBytes
	d.Digest = d.digest()
	var errs []error
	for _, dir := range d.dirs() {
		errs = append(errs, syncTree(dir))
	}
	return errors.Join(errs...)
}

// addBlobs renames the draft's directories into blobs/ and points the manifest there. It
// returns the blobs that were not there before.
func (s *Store) addBlobs(d *draft) (added []string, err error) {
	for _, dir := range d.dirs() {
		id := blobID(d.pointers(), dir)
		isNew, err := s.addBlob(dir, id)
		if isNew {
			added = append(added, id)
		}
		if err != nil {
			return added, err
		}
		for _, f := range d.pointers() {
			if filepath.Dir(f.Path) == dir {
				f.Path = filepath.Join(blobsDir, id, f.Name)
			}
		}
	}
	return added, syncPath(s.path(blobsDir))
}

// blobID names a directory by the names and hashes of its files.
func blobID(files []*File, dir string) string {
	parts := map[string]string{}
	for _, f := range files {
		if filepath.Dir(f.Path) == dir {
			parts[f.Name] = f.SHA256
		}
	}
	return hashJSON(parts)
}

func (s *Store) addBlob(dir, id string) (isNew bool, err error) {
	err = os.Rename(dir, s.path(blobsDir, id))
	if errors.Is(err, fs.ErrExist) { // the same content, from an earlier build
		return false, nil
	}
	return err == nil, err
}

func (s *Store) removeBlobs(ids []string) error {
	var errs []error
	for _, id := range ids {
		errs = append(errs, os.RemoveAll(s.path(blobsDir, id)))
	}
	return errors.Join(errs...)
}

// completeManifests keeps every named template under its digest too. It finishes what a
// publisher that died right after its commit point had left to do.
func (s *Store) completeManifests() error {
	paths, err := filepath.Glob(s.path(templatesDir, "*.json"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		var t Template
		if err := readJSON(path, &t); err != nil {
			s.log.Error("leaving out a broken manifest", "manifest", path, "error", err)
			continue
		}
		if !digestForm.MatchString(t.Digest) {
			continue
		}
		kept := s.path(manifestsDir, t.Digest+".json")
		if _, err := os.Lstat(kept); err == nil {
			continue
		}
		if err := writeJSON(kept, t); err != nil {
			return err
		}
	}
	return nil
}

// namedBlobs are the blobs that a manifest stands on.
func (s *Store) namedBlobs() (map[string]bool, error) {
	named := map[string]bool{}
	for _, dir := range []string{templatesDir, manifestsDir} {
		paths, err := filepath.Glob(s.path(dir, "*.json"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			var t Template
			if err := readJSON(path, &t); err != nil {
				return nil, fail(err, "read manifest", path)
			}
			for _, f := range t.files() {
				named[blobOf(f)] = true
			}
		}
	}
	return named, nil
}
