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
	// Dir is private to root and on the store's file system.
	Dir string
	// MemoryPath and StatePath are the usual names in Dir.
	MemoryPath, StatePath string

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
	return &Stage{
		Dir: dir, MemoryPath: filepath.Join(dir, "memory"), StatePath: filepath.Join(dir, "state"),
		key: key, store: s, work: work,
	}, nil
}

// Publish makes the stage's files the memory of its key: synced, checksummed, renamed. Of
// meta it takes the paths (in Dir; an empty DiskLayerPath: there is none), ControlToken and
// DiskBytes. Whoever comes second gets the first one's memory and loses its own quietly. The
// stage is gone afterwards, whatever the outcome.
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
	if err := errors.Join(syncDir(g.Dir), failpoint.Hit("image.warm.commit")); err != nil {
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

func (g *Stage) manifest(meta Warm) (warmManifest, error) {
	meta.Key, meta.MemoryMB, meta.VCPUs = g.key, g.key.MemoryMB, g.key.VCPUs
	meta.CreatedAt = time.Now().UTC()
	m := warmManifest{Warm: meta}
	m.Memory.Path, m.State.Path = meta.MemoryPath, meta.StatePath
	if meta.DiskLayerPath != "" {
		m.DiskLayer = &File{Path: meta.DiskLayerPath}
	}
	for _, f := range m.files() {
		if err := g.seal(f); err != nil {
			return m, err
		}
	}
	if want := int64(meta.MemoryMB) << 20; m.Memory.SizeBytes != want {
		return m, fault.New(fault.Internal, "publish warm memory", g.key.ID(), "memory file is not as large as the VM's memory")
	}
	return m, nil
}

// seal checks that a file lies in the stage, hashes it and makes it read-only.
func (g *Stage) seal(f *File) (err error) {
	if filepath.Dir(f.Path) != g.Dir {
		return fault.New(fault.Invalid, "publish warm memory", g.key.ID(), "file outside the stage: "+f.Path)
	}
	f.Name = filepath.Base(f.Path)
	if f.SHA256, f.SizeBytes, err = hashFile(f.Path); err != nil {
		return fail(err, "read", f.Path)
	}
	f.Path = ""
	return fail(os.Chmod(filepath.Join(g.Dir, f.Name), 0o400), "protect", f.Name)
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
