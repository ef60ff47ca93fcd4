package sandbox

import (
	"context"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/image"
)

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
	return image.Template{}, nil, fault.New(fault.Unimplemented, "", "", "not yet")
}

// DeleteTemplate takes a template's name away.
func (m *Manager) DeleteTemplate(context.Context, string) error { return nil }
