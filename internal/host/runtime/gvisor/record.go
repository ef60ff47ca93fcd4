package gvisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/cpuid/v2"
	"github.com/zeebo/xxh3"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

const (
	// machine changes with what the bundle promises to whoever runs inside.
	machine    = "systrap bundle-1"
	diskFormat = "erofs-overlay"
)

// Kinds of captures.
const (
	fullKind = "full"
	diskKind = "disk"
)

// identity is what a capture depends on.
type identity struct {
	Driver  string `json:"driver"`
	Build   string `json:"build"`
	Machine string `json:"machine"`
	CPU     string `json:"cpu"`
	Disk    string `json:"disk"`
}

func (i identity) asMap() map[string]string {
	return map[string]string{"driver": i.Driver, "build": i.Build, "machine": i.Machine, "cpu": i.CPU, "disk": i.Disk}
}

// cpuID names the CPU's features: programs inside have chosen their code by them, and gVisor
// loads a checkpoint only where all are there.
func cpuID() string {
	features := cpuid.CPU.FeatureSet()
	slices.Sort(features)
	return fmt.Sprintf("%s %016x", cpuid.CPU.VendorString, xxh3.HashString(strings.Join(features, " ")))
}

// captureRecord is what a capture's manifest says for this runtime.
type captureRecord struct {
	Kind     string   `json:"kind"`
	Identity identity `json:"identity"`
	// Guest is the hash of the guest agent that runs in it.
	Guest string `json:"guest"`
	// Template is the digest of the tree, Tree where its image lay.
	Template string      `json:"template"`
	Tree     string      `json:"tree"`
	VCPUs    int         `json:"vcpus"`
	MemoryMB int         `json:"memory_mb"`
	DiskMB   int         `json:"disk_mb"`
	Files    []savedFile `json:"files"`
}

// savedFile is a file of a capture.
type savedFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	Sum  string `json:"sum"`
}

// instanceRecord is what Adopt needs.
type instanceRecord struct {
	// Identity of the build that runs it, which may be older than the current one.
	Identity  identity `json:"identity"`
	PID       int      `json:"pid"`
	StartTime uint64   `json:"start_time"`
	BootID    string   `json:"boot_id"`
	UID       int      `json:"uid"`
	Leaf      string   `json:"cgroup"`
	Live      string   `json:"live"`
	Guest     string   `json:"guest"`
	Template  string   `json:"template"`
	Tree      string   `json:"tree"`
	VCPUs     int      `json:"vcpus"`
	MemoryMB  int      `json:"memory_mb"`
	DiskMB    int      `json:"disk_mb"`
	// Booted as a template: its capture ends it.
	Booted bool `json:"template_boot,omitempty"`
	// Network: it has an interface.
	Network bool `json:"network"`
}

func parseCapture(c runtime.Capture) (captureRecord, error) {
	var rec captureRecord
	if err := json.Unmarshal(c.Record, &rec); err != nil {
		return rec, damaged(c.Dir, "record", err.Error())
	}
	for _, f := range rec.Files {
		if f.Name == "" || f.Name != filepath.Base(f.Name) || f.Name == ".." {
			return rec, damaged(c.Dir, "record", fmt.Sprintf("it names a file %q", f.Name))
		}
	}
	return rec, nil
}

func parseInstance(record []byte) (instanceRecord, error) {
	var rec instanceRecord
	if err := json.Unmarshal(record, &rec); err != nil {
		return rec, fault.Wrap(err, "read", "instance record")
	}
	return rec, nil
}

// tree of a start: where images lie is the host's affair, not the capture's.
func (rec captureRecord) tree(spec runtime.Spec) string {
	if spec.Template.Tree != "" {
		return spec.Template.Tree
	}
	return rec.Tree
}

// loadable reads a capture and refuses one that cannot be started here.
func (r *Runtime) loadable(spec runtime.Spec, c runtime.Capture, kind string) (captureRecord, error) {
	rec, err := parseCapture(c)
	if err != nil {
		return rec, err
	}
	if err := checkKind(rec.Kind, kind); err != nil {
		return rec, err
	}
	if err := r.identity().accepts(rec.Identity, kind == fullKind); err != nil {
		return rec, err
	}
	if spec.Template.Digest != rec.Template {
		return rec, fault.New(fault.FailedPrecondition, "check", "capture",
			fmt.Sprintf("it belongs to template %s, not %s", rec.Template, spec.Template.Digest))
	}
	if kind == fullKind {
		if err := r.builds.haveGuest(rec.Guest); err != nil {
			return rec, err
		}
	}
	return rec, errors.Join(checkNames(c.Dir, rec), checkSizes(c.Dir, rec.Files))
}

// checkNames: a file that the record leaves out would be read unverified.
func checkNames(dir string, rec captureRecord) error {
	want := saverOf(runtime.CaptureOptions{DiskOnly: rec.Kind == diskKind}).files
	names := make([]string, len(rec.Files))
	for i, f := range rec.Files {
		names[i] = f.Name
	}
	if !slices.Equal(names, want) {
		return damaged(dir, "record", fmt.Sprintf("it names %v, not %v", names, want))
	}
	return nil
}

func checkKind(have, want string) error {
	switch {
	case have == want:
		return nil
	case want == diskKind:
		return fault.New(fault.FailedPrecondition, "check", "capture",
			"it holds memory and disk in one: gVisor cannot take the disk out of it").
			WithHint("resume it, or capture the disk alone")
	default:
		return fault.New(fault.FailedPrecondition, "check", "capture", "it holds the disk alone, no memory").
			WithHint("boot from it")
	}
}

// accepts refuses what no kept build can load here; which build it needs is looked up apart.
// The CPU is that of the programs in its memory, if there is any.
func (i identity) accepts(need identity, memory bool) error {
	differ := func(what, have, need string) error {
		return fault.New(fault.FailedPrecondition, "check", "capture",
			fmt.Sprintf("it was made with %s %q, this host has %q", what, need, have)).
			WithHint("it can be resumed where it was made; nothing of it is lost")
	}
	switch {
	case i.Driver != need.Driver:
		return differ("runtime", i.Driver, need.Driver)
	case i.Machine != need.Machine:
		return differ("machine", i.Machine, need.Machine)
	case i.Disk != need.Disk:
		return differ("disk format", i.Disk, need.Disk)
	case memory && i.CPU != need.CPU:
		return differ("CPU", i.CPU, need.CPU)
	}
	return nil
}
