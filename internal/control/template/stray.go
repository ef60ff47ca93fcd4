package template

import (
	"context"
	"maps"
	"slices"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// StraySnapshots are those that no row knows.
func (i Inventory) StraySnapshots(rows []*Template) []*hostv1.Snapshot {
	left := maps.Clone(i.Snapshots)
	for _, row := range rows {
		delete(left, row.SnapshotID)
	}
	return slices.Collect(maps.Values(left))
}

// StrayTemplates are those that somebody made and no row knows.
func (i Inventory) StrayTemplates(rows []*Template) []*hostv1.Template {
	left := maps.Clone(i.Templates)
	for _, row := range rows {
		if row.Type == Base {
			delete(left, row.Name)
		}
	}
	maps.DeleteFunc(left, func(_ string, t *hostv1.Template) bool { return t.GetBuiltByHost() })
	return slices.Collect(maps.Values(left))
}

// DropStraySnapshot has the host forget a snapshot that no row knows, and says whether it had
// it.
func (s *Service) DropStraySnapshot(ctx context.Context, id string) (bool, error) {
	f, err := s.Look(ctx, &Template{Type: Snapshot, Name: id, SnapshotID: id})
	if err != nil || f.Snapshot == nil && f.Damage == "" {
		return false, err
	}
	return true, s.dropSnapshot(ctx, id)
}

// DropStrayTemplate does the same with a template. A row holds its name meanwhile, or it would
// take a new one of the same name.
func (s *Service) DropStrayTemplate(ctx context.Context, name string) (bool, error) {
	row := &Template{ID: store.NewID(), Name: name, Type: Base, State: store.TemplateDeleting, HostID: host.LocalID,
		Version: 1, CreatedAt: store.At(s.now())}
	err := s.store.AddTemplate(ctx, row)
	if fault.Is(err, fault.AlreadyExists) {
		return false, nil // somebody knows it by now
	}
	if err != nil {
		return false, err
	}
	f, err := s.Look(ctx, row)
	if err == nil && !f.has(Base) {
		_, err = s.store.RemoveTemplate(ctx, row)
		return false, err
	}
	return true, s.Finish(ctx, row)
}
