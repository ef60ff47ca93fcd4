package template

import (
	"context"
	"reflect"
	"time"

	"connectrpc.com/connect"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

const (
	goneReason   = "the host no longer has it"
	coldBaseText = "the host has no memory of it: sandboxes of it boot"
)

// Found is what the host has of a row: the template of a base, the snapshot of a snapshot
// or of a base with memory.
type Found struct {
	Template *hostv1.Template
	Snapshot *hostv1.Snapshot
	// Damage says why a snapshot that is there cannot be used.
	Damage string
}

// Whole says whether all that a row names is there.
func (f Found) Whole(row *Template) bool {
	return f.has(row.Type) && (row.SnapshotID == "" || f.Snapshot != nil)
}

// has says whether a row of the type can be ready with it.
func (f Found) has(t Type) bool {
	if t == Snapshot {
		return f.Snapshot != nil
	}
	return f.Template != nil && !f.Template.GetBuiltByHost()
}

// Inventory is all that the host has.
type Inventory struct {
	Templates map[string]*hostv1.Template // by name
	Snapshots map[string]*hostv1.Snapshot // by id
}

// Of is what it has of a row.
func (i Inventory) Of(row *Template) Found {
	var f Found
	if row.SnapshotID != "" {
		f.Snapshot = i.Snapshots[row.SnapshotID]
	}
	if row.Type == Base {
		f.Template = i.Templates[row.Name]
	}
	return f
}

// Inventory asks the host for all that it has.
func (s *Service) Inventory(ctx context.Context) (Inventory, error) {
	inv := Inventory{Snapshots: map[string]*hostv1.Snapshot{}}
	var err error
	if inv.Templates, err = s.hostTemplates(ctx); err != nil {
		return inv, err
	}
	resp, err := s.client.ListSnapshots(ctx, connect.NewRequest(&hostv1.ListSnapshotsRequest{}))
	if err != nil {
		return inv, host.CallError(err, "list", "the host's snapshots")
	}
	for _, snap := range resp.Msg.GetSnapshots() {
		inv.Snapshots[snap.GetId()] = snap
	}
	return inv, nil
}

// Look asks the host for what it has of one row.
func (s *Service) Look(ctx context.Context, row *Template) (Found, error) {
	var f Found
	if row.Type == Base {
		list, err := s.hostTemplates(ctx)
		if err != nil {
			return f, err
		}
		f.Template = list[row.Name]
	}
	if row.SnapshotID == "" {
		return f, nil
	}
	resp, err := s.client.GetSnapshot(ctx, connect.NewRequest(&hostv1.GetSnapshotRequest{SnapshotId: row.SnapshotID}))
	switch {
	case fault.Is(err, fault.NotFound):
		return f, nil
	case fault.Is(err, fault.DataLoss):
		f.Damage = fault.Message(fault.FromConnect(err))
		return f, nil
	case err != nil:
		return f, host.CallError(err, "ask host about", kind(row)+" "+row.Name)
	}
	f.Snapshot = resp.Msg.GetSnapshot()
	return f, nil
}

// Heal says how a row at rest has to change to agree with what its host has. It decides
// only; the caller swaps. Rows that somebody works on, or must work on, are left alone, and
// so are the host's own, which Sync keeps.
func Heal(row *Template, f Found, now time.Time) (*Template, bool) {
	resting := row.State == store.TemplateReady || row.State == store.TemplateLost
	if !resting || row.BuiltByHost || row.Claimed(now) {
		return nil, false
	}
	next := row.Copy()
	next.ClaimID, next.ClaimDeadline = "", 0
	if f.has(row.Type) {
		take(next, f)
	} else if row.State != store.TemplateLost {
		next.State, next.Reason, next.SizeBytes, next.OwnBytes = store.TemplateLost, goneReason, 0, 0
		if f.Damage != "" {
			next.Reason = "it is damaged: " + f.Damage
		}
	}
	return next, !reflect.DeepEqual(row, next)
}

// take makes a row ready with what the host has.
func take(row *Template, f Found) {
	row.State, row.Reason = store.TemplateReady, ""
	if row.Type == Snapshot {
		takeSnapshot(row, f.Snapshot)
		row.SizeBytes, row.OwnBytes = f.Snapshot.GetSizeBytes(), f.Snapshot.GetOwnBytes()
		return
	}
	takeTemplate(row, f.Template)
	switch {
	case f.Snapshot != nil:
		takeSnapshot(row, f.Snapshot)
		row.SizeBytes += f.Snapshot.GetSizeBytes()
	case row.SnapshotID != "":
		row.SnapshotID, row.DiskOnly, row.Reason = "", true, coldBaseText
		row.Runtime, row.Isolation, row.VCPUs, row.MemoryMB, row.DiskSizeMB = "", "", 0, 0, 0
	}
}

// takeSnapshot takes what memory needs and what keeping it cost.
func takeSnapshot(row *Template, snap *hostv1.Snapshot) {
	res := snap.GetResources()
	row.VCPUs, row.MemoryMB, row.DiskSizeMB = int(res.GetVcpus()), int(res.GetMemoryMb()), int(res.GetDiskSizeMb())
	row.Runtime, row.Isolation, row.DiskOnly = snap.GetRuntime(), snap.GetIsolation(), snap.GetDiskOnly()
	row.FrozenUS = snap.GetFrozen().AsDuration().Microseconds()
	if len(snap.GetPhases()) > 0 {
		row.Phases = host.Phases(snap.GetPhases())
	}
}
