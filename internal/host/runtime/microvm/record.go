package microvm

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/memory/uffd"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/vmm"
)

// captureRecord is what a capture's manifest says for this runtime. Paths inside the capture
// are relative to it, since it is renamed when it is published; others are absolute.
type captureRecord struct {
	Identity vmm.Identity `json:"identity"`
	VCPUs    int          `json:"vcpus"`
	MemoryMB int          `json:"memory_mb"`
	// DiskOnly: state and memory are not there; it is booted from.
	DiskOnly bool   `json:"disk_only,omitempty"`
	State    string `json:"state,omitempty"`
	// StateSum is the state file's checksum, verified before a guest runs.
	StateSum string `json:"state_sum,omitempty"`
	// MemoryBase is the template's memory; empty means zeros (a sandbox that booted cold).
	MemoryBase string `json:"memory_base,omitempty"`
	// MemoryMap is empty for a template's own memory: nothing differs from the base.
	MemoryMap string     `json:"memory_map,omitempty"`
	Layers    []string   `json:"layers,omitempty"`
	Disk      disk.Stack `json:"disk"`
	DiskBytes int64      `json:"disk_bytes"`
}

// instanceRecord is what Adopt needs.
type instanceRecord struct {
	// Identity of the VMM that runs it, which may be older than the one installed now.
	Identity   vmm.Identity `json:"identity"`
	Handle     vmm.Handle   `json:"handle"`
	Live       disk.Live    `json:"live"`
	DiskIndex  int          `json:"disk_index"`
	MemoryBase string       `json:"memory_base,omitempty"`
	// MemoryID is what the base held when the VM was started from it, whatever lies there by now.
	MemoryID memory.Hash `json:"memory_id,omitzero"`
	// Origin is what it was restored from, over the base, and Pager the process that serves it, where
	// the VMM makes its own memory.
	Origin *origin      `json:"origin,omitempty"`
	Pager  *uffd.Handle `json:"pager,omitempty"`
	VCPUs  int          `json:"vcpus"`
}

// parseCapture reads a record and makes its paths absolute.
func parseCapture(c runtime.Capture) (captureRecord, error) {
	var r captureRecord
	if err := json.Unmarshal(c.Record, &r); err != nil {
		return r, fault.Wrap(fmt.Errorf("parse: %w", err), "read capture record of", c.Dir)
	}
	each(&r, func(p string) string { return absolute(c.Dir, p) })
	return r, nil
}

// relativeTo makes the paths below dir relative.
func (r captureRecord) relativeTo(dir string) captureRecord {
	r.Layers = append([]string(nil), r.Layers...)
	r.Disk.Layers = append([]disk.Layer(nil), r.Disk.Layers...)
	each(&r, func(p string) string { return strings.TrimPrefix(p, dir+"/") })
	return r
}

// each applies f to every path of a record.
func each(r *captureRecord, f func(string) string) {
	for _, p := range []*string{&r.State, &r.MemoryBase, &r.MemoryMap, &r.Disk.Base.Path} {
		if *p != "" {
			*p = f(*p)
		}
	}
	for i := range r.Layers {
		r.Layers[i] = f(r.Layers[i])
	}
	for i := range r.Disk.Layers {
		r.Disk.Layers[i].Path = f(r.Disk.Layers[i].Path)
	}
}

func absolute(dir, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(dir, p)
}

// files are all paths that the record names.
func (r captureRecord) files() []string {
	var out []string
	each(&r, func(p string) string {
		out = append(out, p)
		return p
	})
	return out
}

// names tells whether the record names a file, by whatever name.
func (r captureRecord) names(path string) bool {
	return slices.ContainsFunc(r.files(), func(name string) bool { return sameFile(name, path) })
}

// restorable refuses a capture that this host's VMM cannot load, and one without memory.
func (r captureRecord) restorable(have vmm.Identity) error {
	if r.DiskOnly {
		return fault.New(fault.FailedPrecondition, "restore", "capture", "it holds the disk alone").
			WithHint("boot from it")
	}
	return checkIdentity(have, r.Identity)
}

// checkIdentity refuses a capture that this host's VMM cannot load.
func checkIdentity(have, need vmm.Identity) error {
	differ := func(what, h, n string) error {
		return fault.New(fault.FailedPrecondition, "restore", "capture",
			fmt.Sprintf("it was made with %s %q, this host has %q", what, n, h)).
			WithHint("install the build that made it again; the sandbox stays paused until then")
	}
	switch {
	case have.Machine != need.Machine:
		return differ("machine type", have.Machine, need.Machine)
	case have.Build != need.Build:
		return differ("VMM build", have.Version+" "+have.Build, need.Version+" "+need.Build)
	case have.CPU != need.CPU:
		return differ("CPU model", have.CPU, need.CPU)
	}
	return nil
}
