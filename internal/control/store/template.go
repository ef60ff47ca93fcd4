package store

import (
	"context"
	"time"

	"github.com/uptrace/bun"

	"github.com/roosthq/roost/internal/fault"
)

// TemplateType says where a template comes from.
type TemplateType string

// The types.
const (
	// BaseTemplate is a root disk of its own, built by the host or made of a sandbox's files.
	BaseTemplate TemplateType = "base"
	// SnapshotTemplate was captured from a sandbox.
	SnapshotTemplate TemplateType = "snapshot"
)

// TemplateState of a template; internal/control/template has the transitions.
type TemplateState string

// The states, as the API names them.
const (
	TemplateCreating TemplateState = "creating"
	TemplateReady    TemplateState = "ready"
	TemplateDeleting TemplateState = "deleting"
	TemplateLost     TemplateState = "lost"
)

// Size is one that a template has warm memory for.
type Size struct {
	VCPUs    int `json:"vcpus"`
	MemoryMB int `json:"memory_mb"`
}

// Template is one row of templates.
type Template struct {
	bun.BaseModel `bun:"table:templates,alias:t"`

	ID     string        `bun:"id,pk"`
	Name   string        `bun:"name"`
	Type   TemplateType  `bun:"type"`
	State  TemplateState `bun:"state"`
	Reason string        `bun:"reason"`
	HostID string        `bun:"host_id"`
	Digest string        `bun:"digest"`
	// SnapshotID is the host's id of the memory that sandboxes start from: a snapshot's own,
	// the hidden one of a base that was made with memory, or "".
	SnapshotID string `bun:"snapshot_id"`
	// Runtime, Isolation and the sizes are those of the memory; a base without has none.
	Runtime    string `bun:"runtime"`
	Isolation  string `bun:"isolation"`
	VCPUs      int    `bun:"vcpus"`
	MemoryMB   int    `bun:"memory_mb"`
	DiskSizeMB int    `bun:"disk_size_mb"`
	// DiskBytes is the least that a disk of a base may have.
	DiskBytes int64 `bun:"disk_bytes"`
	SizeBytes int64 `bun:"size_bytes"`
	OwnBytes  int64 `bun:"own_bytes"`
	// ParentID is the template that the source came from; it may be gone.
	ParentID        string  `bun:"parent_id"`
	SourceSandboxID string  `bun:"source_sandbox_id"`
	BuiltByHost     bool    `bun:"built_by_host"`
	DiskOnly        bool    `bun:"disk_only"`
	FrozenUS        int64   `bun:"frozen_us"`
	Phases          []Phase `bun:"phases,type:text"`
	Warm            []Size  `bun:"warm,type:text"`
	ClaimID         string  `bun:"claim_id"`
	ClaimDeadline   Instant `bun:"claim_deadline"`
	// Version counts writes of this row.
	Version   int64   `bun:"version"`
	CreatedAt Instant `bun:"created_at"`
}

// Claimed says that an operation owns the row at now.
func (t *Template) Claimed(now time.Time) bool {
	return t.ClaimID != "" && t.ClaimDeadline > At(now)
}

// Copy is a row to change and give to SwapTemplate; slices are shared and must be replaced
// whole.
func (t *Template) Copy() *Template {
	c := *t
	return &c
}

// AddTemplate inserts a template. A name that is taken, or is another's id, is
// already_exists. A base takes over the sandboxes that were made of its name before it had
// a row.
func (s *Store) AddTemplate(ctx context.Context, row *Template) error {
	err := s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		ok, err := insertTemplate(ctx, tx, row)
		if err == nil && !ok {
			err = fault.New(fault.AlreadyExists, "", "", "the name is taken")
		}
		return err
	})
	return fault.Wrap(err, "add", "template "+row.Name)
}

func insertTemplate(ctx context.Context, tx bun.Tx, row *Template) (bool, error) {
	taken, err := tx.NewSelect().Model((*Template)(nil)).Where("t.id = ?", row.Name).Where("t.id <> ?", row.ID).Exists(ctx)
	if err != nil || taken {
		return false, err
	}
	ok, err := affected(tx.NewInsert().Model(row).On("CONFLICT DO NOTHING").Exec(ctx))
	if err != nil || !ok || !row.BuiltByHost {
		return ok, err
	}
	_, err = tx.NewUpdate().Model((*Sandbox)(nil)).Set("template_id = ?", row.ID).
		Where("template_id = ''").Where("template = ?", row.Name).Exec(ctx)
	return ok, err
}

// Template reads the row of a name, or else of an id.
func (s *Store) Template(ctx context.Context, nameOrID string) (*Template, error) {
	row := new(Template)
	err := s.read.NewSelect().Model(row).Where("t.name = ? OR t.id = ?", nameOrID, nameOrID).
		OrderExpr("CASE WHEN t.name = ? THEN 0 ELSE 1 END", nameOrID).Limit(1).Scan(ctx)
	if err != nil {
		return nil, notFound(err, "find", "template "+nameOrID)
	}
	return row, nil
}

// TemplateFilter chooses rows of a list; empty fields choose all.
type TemplateFilter struct {
	Type            TemplateType
	SourceSandboxID string
}

// Templates lists rows, newest first.
func (s *Store) Templates(ctx context.Context, f TemplateFilter) ([]*Template, error) {
	var rows []*Template
	q := s.read.NewSelect().Model(&rows).OrderExpr("t.created_at DESC, t.id DESC")
	if f.Type != "" {
		q.Where("t.type = ?", f.Type)
	}
	if f.SourceSandboxID != "" {
		q.Where("t.source_sandbox_id = ?", f.SourceSandboxID)
	}
	if err := q.Scan(ctx); err != nil {
		return nil, fault.Wrap(err, "list", "templates")
	}
	return rows, nil
}

// Children counts, by template id, the live sandboxes and the templates that come from it
// directly.
func (s *Store) Children(ctx context.Context) (map[string]int, error) {
	var rows []struct {
		ID string `bun:"id"`
		N  int    `bun:"n"`
	}
	sandboxes := s.read.NewSelect().Model((*Sandbox)(nil)).ColumnExpr("s.template_id AS id").
		Where("s.template_id <> ''").Where("s.state <> ?", Deleted)
	templates := s.read.NewSelect().Model((*Template)(nil)).ColumnExpr("t.parent_id AS id").Where("t.parent_id <> ''")
	err := s.read.NewSelect().TableExpr("(?) AS c", sandboxes.UnionAll(templates)).
		ColumnExpr("c.id AS id, COUNT(*) AS n").GroupExpr("c.id").Scan(ctx, &rows)
	if err != nil {
		return nil, fault.Wrap(err, "count", "children of templates")
	}
	out := make(map[string]int, len(rows))
	for _, r := range rows {
		out[r.ID] = r.N
	}
	return out, nil
}

// TemplateSwap is a change of one row: Seen as it was read, Next as it shall be. A nil Next
// removes the row.
type TemplateSwap struct {
	Seen, Next *Template
}

// SwapTemplate replaces a row when it still is as it was seen, and says whether it did. Next
// gets the new version.
func (s *Store) SwapTemplate(ctx context.Context, seen, next *Template) (bool, error) {
	done, err := s.SwapTemplates(ctx, []TemplateSwap{{seen, next}})
	return done == 1, err
}

// RemoveTemplate drops a row when it still is as it was seen, and says whether it did.
func (s *Store) RemoveTemplate(ctx context.Context, seen *Template) (bool, error) {
	return s.SwapTemplate(ctx, seen, nil)
}

// SwapTemplates makes many independent swaps in one transaction and says how many rows still
// were as seen.
func (s *Store) SwapTemplates(ctx context.Context, swaps []TemplateSwap) (done int, err error) {
	err = s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		done = 0
		for _, sw := range swaps {
			ok, err := swapTemplate(ctx, tx, sw)
			if err != nil {
				return fault.Wrap(err, "update", "template "+sw.Seen.Name)
			}
			if ok {
				done++
			}
		}
		return nil
	})
	return done, err
}

func swapTemplate(ctx context.Context, tx bun.Tx, sw TemplateSwap) (bool, error) {
	if sw.Next == nil {
		return affected(tx.NewDelete().Model((*Template)(nil)).Where("id = ?", sw.Seen.ID).
			Where("state = ?", sw.Seen.State).Where("version = ?", sw.Seen.Version).Exec(ctx))
	}
	sw.Next.Version = sw.Seen.Version + 1
	return affected(tx.NewUpdate().Model(sw.Next).
		ExcludeColumn("id", "name", "type", "host_id", "created_at").
		Where("id = ?", sw.Seen.ID).Where("state = ?", sw.Seen.State).
		Where("version = ?", sw.Seen.Version).Exec(ctx))
}
