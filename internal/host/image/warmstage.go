package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/roosthq/roost/internal/failpoint"
	"github.com/roosthq/roost/internal/fault"
)

// Stage is where warm memory is made. Write the files into Dir, then Publish or Abort; a
// stage whose process dies is removed by the next Open.
type Stage struct {
	// Dir is private to root and on the store's file system. All that is in it is published.
	Dir string

	key   WarmKey
	store *Store
	work  *workspace
}

// StageWarm begins to make the memory of a key.
func (s *Store) StageWarm(key WarmKey) (*Stage, error) {
	work, err := s.newWorkspace()
	if err != nil {
		return nil, err
	}
	dir, err := work.mkdir("warm")
	if err != nil {
		return nil, errors.Join(err, work.remove())
	}
	return &Stage{Dir: dir, key: key, store: s, work: work}, nil
}

// Publish makes the stage's files the memory of its key: synced, checksummed, renamed. Of
// meta it takes Record, ControlToken and DiskBytes. Whoever comes second gets the first one's
// memory and loses its own quietly. The stage is gone afterwards, whatever the outcome.
func (g *Stage) Publish(meta Warm) (Warm, error) {
	w, err := g.publish(meta)
	return w, errors.Join(err, g.Abort())
}

// Abort throws the stage away. Idempotent, and nothing after Publish.
func (g *Stage) Abort() error { return g.work.remove() }

func (g *Stage) publish(meta Warm) (Warm, error) {
	id := g.key.ID()
	m, err := g.manifest(meta)
	if err != nil {
		return Warm{}, err
	}
	if err := writeJSON(filepath.Join(g.Dir, warmJSON), m); err != nil {
		return Warm{}, fail(err, "publish warm memory", id)
	}
	if err := errors.Join(syncTree(g.Dir), failpoint.Hit("image.warm.commit")); err != nil {
		return Warm{}, fail(err, "publish warm memory", id)
	}
	err = os.Rename(g.Dir, g.store.path(warmDir, id))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return Warm{}, fail(err, "publish warm memory", id)
	}
	if err := syncPath(g.store.path(warmDir)); err != nil {
		return Warm{}, fail(err, "publish warm memory", id)
	}
	return g.store.loadWarm(id)
}

// manifest hashes the stage's files, makes them read-only and lists them.
func (g *Stage) manifest(meta Warm) (warmManifest, error) {
	meta.Key, meta.MemoryMB, meta.VCPUs = g.key, g.key.MemoryMB, g.key.VCPUs
	meta.CreatedAt = time.Now().UTC()
	m := warmManifest{Warm: meta}
	err := filepath.WalkDir(g.Dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := g.seal(path, e)
		m.Files = append(m.Files, f)
		return err
	})
	if err == nil && len(m.Files) == 0 {
		err = fault.New(fault.Invalid, "read", g.Dir, "no file was written")
	}
	return m, fail(err, "publish warm memory", g.key.ID())
}

func (g *Stage) seal(path string, e fs.DirEntry) (f File, err error) {
	if f.Name, err = filepath.Rel(g.Dir, path); err != nil {
		return f, err
	}
	if !e.Type().IsRegular() {
		return f, fault.New(fault.Invalid, "publish", path, "not a plain file")
	}
	if f.SHA256, f.SizeBytes, err = hashFile(path); err != nil {
		return f, err
	}
	return f, os.Chmod(path, 0o400)
}

// RemoveWarm deletes the memory of a key. The caller knows that no sandbox stands on it; what
// does not exist is removed.
func (s *Store) RemoveWarm(key WarmKey) error {
	work, err := s.newWorkspace()
	if err != nil {
		return err
	}
	// Renamed first: readers see all of it or nothing.
	err = os.Rename(s.path(warmDir, key.ID()), work.path("warm"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(fail(err, "remove warm memory", key.ID()), work.remove())
}
