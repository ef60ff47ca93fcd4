package api

import (
	"fmt"
	"time"

	"github.com/roosthq/roost/api/gen/filesystem"
	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/control/leak"
	"github.com/roosthq/roost/internal/control/sandbox"
	"github.com/roosthq/roost/internal/control/template"
)

// or is a parameter's value or its default.
func or[T any](p *T, fallback T) T {
	if p == nil {
		return fallback
	}
	return *p
}

// optional is a pointer, nil for the zero value.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func sandboxOf(row *sandbox.Sandbox) v1.Sandbox {
	out := v1.Sandbox{
		Id: row.ID, State: v1.SandboxState(row.State), Reason: optional(row.Reason),
		Template: row.Template, Vcpus: row.VCPUs, MemoryMb: row.MemoryMB, DiskSizeMb: row.DiskSizeMB,
		IdleTimeoutS: row.IdleTimeoutS, Isolation: row.Isolation, Runtime: row.Runtime,
		Generation: row.Generation, CreatedAt: row.CreatedAt.Time(), ActiveAt: optionalTime(row.ActiveAt.Time()),
		DiskUsedBytes: &row.DiskUsedBytes, MemoryUsedBytes: &row.MemoryUsedBytes,
		ForkedFrom: optional(row.ForkedFrom), Phases: phasesOf(row.Phases),
	}
	if len(row.Metadata) > 0 {
		out.Metadata = &row.Metadata
	}
	return out
}

var entryTypes = map[filesystem.FileType]v1.EntryType{
	filesystem.FileType_FILE_TYPE_FILE:      v1.File,
	filesystem.FileType_FILE_TYPE_DIRECTORY: v1.Directory,
	filesystem.FileType_FILE_TYPE_SYMLINK:   v1.Symlink,
}

func entryOf(e *filesystem.EntryInfo) v1.Entry {
	out := v1.Entry{
		Name: e.GetName(), Path: e.GetPath(), Type: v1.Other, Size: e.GetSize(),
		Mode: fmt.Sprintf("%04o", e.GetMode()), Owner: optional(e.GetOwner()), Group: optional(e.GetGroup()),
		SymlinkTarget: e.SymlinkTarget,
	}
	if t, known := entryTypes[e.GetType()]; known {
		out.Type = t
	}
	if e.SymlinkTarget != nil {
		out.Type = v1.Symlink // the guest reports the target's type, as envd does
	}
	if e.GetModifiedTime().IsValid() {
		at := e.GetModifiedTime().AsTime()
		out.ModifiedAt = &at
	}
	return out
}

func templatesOf(list []template.View) []v1.Template {
	out := make([]v1.Template, len(list))
	for i, t := range list {
		out[i] = templateOf(t)
	}
	return out
}

func templateOf(t template.View) v1.Template {
	state := string(t.State)
	out := v1.Template{
		Id: t.ID, Name: t.Name, Type: v1.TemplateType(t.Type), State: &state, Reason: optional(t.Reason),
		Digest: t.Digest, SizeBytes: t.SizeBytes, CreatedAt: optionalTime(t.CreatedAt.Time()), Deletable: !t.BuiltByHost,
		Parent: optional(t.Parent), SourceSandboxId: optional(t.SourceSandboxID), Children: &t.Children,
		Vcpus: optional(t.VCPUs), MemoryMb: optional(t.MemoryMB), DiskSizeMb: optional(t.DiskSizeMB),
		Runtime: optional(t.Runtime), Isolation: optional(t.Isolation),
		Phases: phasesOf(t.Phases),
	}
	if t.Type == template.Base {
		warm := make([]struct {
			MemoryMb int `json:"memory_mb"`
			Vcpus    int `json:"vcpus"`
		}, len(t.Warm))
		for i, w := range t.Warm {
			warm[i].MemoryMb, warm[i].Vcpus = w.MemoryMB, w.VCPUs
		}
		out.WarmSizes = &warm
	} else {
		out.OwnBytes = &t.OwnBytes
	}
	if !t.BuiltByHost {
		frozen := milliseconds(time.Duration(t.FrozenUS) * time.Microsecond)
		out.DiskOnly, out.FrozenMs = &t.DiskOnly, &frozen
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// phasesOf is nil for none.
func phasesOf(in []sandbox.Phase) *[]v1.Phase {
	if len(in) == 0 {
		return nil
	}
	out := make([]v1.Phase, len(in))
	for i, p := range in {
		out[i] = v1.Phase{Name: p.Name, Ms: float64(p.Microseconds) / 1000}
	}
	return &out
}

func leaksOf(in []*leak.Leak) v1.LeakList {
	out := v1.LeakList{Leaks: make([]v1.Leak, len(in))}
	for i, l := range in {
		out.Leaks[i] = v1.Leak{Kind: l.GetKind(), Name: l.GetName(), Detail: l.GetDetail(), Bytes: &l.Bytes,
			Removed: l.GetRemoved(), Error: optional(l.GetError())}
	}
	return out
}

func keyOf(k *apikey.Key) v1.APIKey {
	return v1.APIKey{Id: k.ID, Name: k.Name, Prefix: k.Prefix, CreatedAt: k.CreatedAt.Time(),
		LastUsedAt: optionalTime(k.LastUsedAt.Time())}
}

func hostOf(h *hostv1.GetHostResponse) v1.Host {
	cores, mem := int(h.GetCpuCores()), int64(h.GetMemoryBytes())
	disk, free := int64(h.GetDiskBytes()), int64(h.GetDiskFreeBytes())
	out := v1.Host{Hostname: h.GetHostname(), Version: h.GetVersion(), Runtime: h.GetRuntime(),
		Isolation: h.GetIsolation(), CpuCores: &cores, MemoryBytes: &mem, DiskBytes: &disk,
		DiskFreeBytes: &free, Runtimes: make([]v1.Runtime, len(h.GetRuntimes())),
		Checks: make([]v1.Check, len(h.GetChecks()))}
	if d := h.GetDisk(); d != nil {
		out.Disk = diskOf(d)
	}
	for i, r := range h.GetRuntimes() {
		out.Runtimes[i] = v1.Runtime{Name: r.GetName(), Isolation: r.GetIsolation(), Available: r.GetAvailable(),
			Reason: r.GetReason(), Hint: optional(r.GetHint())}
	}
	for i, c := range h.GetChecks() {
		out.Checks[i] = v1.Check{Name: c.GetName(), Status: v1.CheckStatus(c.GetStatus()),
			Detail: c.GetDetail(), Hint: optional(c.GetHint())}
	}
	return out
}

func diskOf(d *hostv1.Disk) *v1.Disk {
	return &v1.Disk{
		Path: d.GetPath(), TotalBytes: int64(d.GetTotalBytes()), FreeBytes: int64(d.GetFreeBytes()), //nolint:gosec // sizes of a disk
		UsedPercent: d.GetUsedPercent(), State: v1.DiskState(d.GetState()),
		WarnPercent: d.GetWarnPercent(), FullPercent: d.GetFullPercent(), ResumePercent: d.GetResumePercent(),
		ReserveBytes: int64(d.GetReserveBytes()), ReserveWantedBytes: int64(d.GetReserveWantedBytes()), //nolint:gosec // as above
		Frozen: append([]string{}, d.GetFrozen()...),
	}
}
