package image

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// WarmKey is everything that saved memory depends on. Restoring under any other is wrong, so
// another key is other memory.
type WarmKey struct {
	// Image is the template's digest.
	Image string `json:"image"`
	// Kernel is the digest of the kernel file.
	Kernel string `json:"kernel"`
	// Cmdline is the whole kernel command line, the host's TSC rate included.
	Cmdline string `json:"cmdline"`
	// Guest is the digest of the roost-guest binary.
	Guest string `json:"guest"`
	// Boot is BootConfig.Digest: addresses and names that the guest took over at boot.
	Boot string `json:"boot"`
	// Runtime is the hash of the VMM's build.
	Runtime  string `json:"runtime"`
	Machine  string `json:"machine"`
	CPU      string `json:"cpu"`
	VCPUs    int    `json:"vcpus"`
	MemoryMB int    `json:"memory_mb"`
	// DiskMB is the size of the sandbox's disk where a capture fixes it for all that restore
	// it; 0 where a disk grows at its restore, and memory serves every size.
	DiskMB int `json:"disk_mb,omitempty"`
}

// ID is the key's hash, and the name of its directory.
func (k WarmKey) ID() string { return hashJSON(k) }

// Warm is the saved state of a VM that has booted from a template. It is secret: the guest's
// memory and the token lie in it.
type Warm struct {
	Key WarmKey `json:"key"`
	// Dir holds the files that the runtime wrote: memory, device state, disk layer.
	Dir string `json:"-"`
	// Record is what the runtime said of those files; it alone knows what it means.
	Record json.RawMessage `json:"record"`
	// DiskBytes is the size of the disk that the VM booted with.
	DiskBytes int64 `json:"disk_bytes"`
	// ControlToken is what the guest in this memory accepts.
	ControlToken string    `json:"control_token"`
	CreatedAt    time.Time `json:"created_at"`
	MemoryMB     int       `json:"memory_mb"`
	VCPUs        int       `json:"vcpus"`
	// SizeBytes is the real use on this host's disk.
	SizeBytes int64 `json:"-"`
}

// warmManifest is warm.json: a Warm and its files, named relative to its directory.
type warmManifest struct {
	Warm
	Files []File `json:"files"`
}

const warmJSON = "warm.json"

// Warm finds the memory of a template for a key; fault.NotFound means boot once and publish.
func (s *Store) Warm(t Template, key WarmKey) (Warm, error) {
	if key.Image != t.Digest {
		return Warm{}, fault.New(fault.Invalid, "find warm memory of template", t.Name, "the key is of another template")
	}
	return s.loadWarm(key.ID())
}

// Warms lists the warm memory of a template, oldest first.
func (s *Store) Warms(t Template) ([]Warm, error) {
	paths, err := filepath.Glob(s.path(warmDir, "*", warmJSON))
	if err != nil {
		return nil, fail(err, "list warm memory in", s.dir)
	}
	var all []Warm
	for _, path := range paths {
		w, err := s.loadWarm(filepath.Base(filepath.Dir(path)))
		if err != nil {
			s.log.Error("leaving out broken warm memory", "manifest", path, "error", err)
			continue
		}
		if w.Key.Image == t.Digest {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b Warm) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, nil
}

func (s *Store) loadWarm(id string) (Warm, error) {
	m, err := s.readWarm(id)
	if err != nil {
		return Warm{}, err
	}
	w := m.Warm
	w.Dir = s.path(warmDir, id)
	for _, f := range m.Files {
		n, err := allocated(f.Path)
		if err != nil {
			return Warm{}, fail(err, "read warm memory", id)
		}
		w.SizeBytes += n
	}
	return w, nil
}

// readWarm reads a manifest, makes its paths absolute and checks that its files are there.
func (s *Store) readWarm(id string) (warmManifest, error) {
	var m warmManifest
	err := readJSON(s.path(warmDir, id, warmJSON), &m)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fault.New(fault.NotFound, "find warm memory", id, "none for this template, size and host")
	}
	if err != nil {
		return m, fail(err, "read warm memory", id)
	}
	if m.Key.ID() != id {
		return m, fault.New(fault.Internal, "read warm memory", id, "its manifest is for another key")
	}
	for i := range m.Files {
		f := &m.Files[i]
		if !filepath.IsLocal(f.Name) {
			return m, fault.New(fault.Internal, "read warm memory", id, "file outside its directory: "+f.Name)
		}
		f.Path = s.path(warmDir, id, f.Name)
		if err := f.present(); err != nil {
			return m, fault.Wrap(err, "read warm memory", id)
		}
	}
	return m, nil
}

// VerifyWarm reads every file of warm memory and compares it with its manifest.
func (s *Store) VerifyWarm(key WarmKey) error {
	m, err := s.readWarm(key.ID())
	if err != nil {
		return err
	}
	for _, f := range m.Files {
		if err := f.Verify(); err != nil {
			return fault.Wrap(err, "verify warm memory", key.ID())
		}
	}
	return nil
}
