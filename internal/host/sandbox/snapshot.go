package sandbox

import (
	"context"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
	"github.com/roosthq/roost/internal/host/runtime"
)

// Snapshot is a capture that belongs to no sandbox: immutable, whole by itself, found by an id.
type Snapshot struct {
	ID        string
	SandboxID string
	Template  string
	Resources runtime.Resources
	Runtime   string
	Isolation runtime.Isolation
	CreatedAt time.Time
	// SizeBytes is the real use of all that it needs but its template, OwnBytes the part that
	// nothing else needs.
	SizeBytes, OwnBytes int64
	// Frozen is how long its source stood still.
	Frozen   time.Duration
	Phases   []runtime.Phase
	DiskOnly bool
}

var errNotYet = fault.New(fault.Unimplemented, "", "", "not yet")

// CreateSnapshot saves a sandbox under an id of its own; a running one runs on.
func (m *Manager) CreateSnapshot(context.Context, Operation, string, string) (Snapshot, View, error) {
	return Snapshot{}, View{}, errNotYet
}

// DeleteSnapshot removes a snapshot; one that is not there is removed already.
func (m *Manager) DeleteSnapshot(context.Context, string) error { return errNotYet }

// Snapshot describes one.
func (m *Manager) Snapshot(string) (Snapshot, error) { return Snapshot{}, errNotYet }

// Snapshots describes all, oldest first.
func (m *Manager) Snapshots() ([]Snapshot, error) { return nil, errNotYet }

// Fork is one sandbox to make of another.
type Fork struct {
	Operation string
	ID        string
}

// ForkRequest says what to make of a sandbox.
type ForkRequest struct {
	Forks []Fork
	// Idle is the source's when nil; Envs are added to the source's.
	Idle *time.Duration
	Envs map[string]string
}

// ForkResult is what became of it.
type ForkResult struct {
	Sandboxes []View
	Source    View
	Frozen    time.Duration
	Phases    []runtime.Phase
}

// Fork makes sandboxes with the memory of one that runs or is paused: all or none.
func (m *Manager) Fork(context.Context, Operation, string, ForkRequest) (ForkResult, error) {
	return ForkResult{}, errNotYet
}

// TemplateRequest says what to make a template of.
type TemplateRequest struct {
	Name string
	// Sandbox or Snapshot is the source.
	Sandbox, Snapshot string
	// Keep is the id of the snapshot that keeps the memory; "" takes the files alone.
	Keep string
}

// CreateTemplate makes a template of a sandbox's or a snapshot's files.
func (m *Manager) CreateTemplate(context.Context, Operation, TemplateRequest, Report) (image.Template, *Snapshot, error) {
	return image.Template{}, nil, errNotYet
}

// DeleteTemplate takes a template's name away.
func (m *Manager) DeleteTemplate(context.Context, string) error { return errNotYet }
