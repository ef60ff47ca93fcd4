package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/uptrace/bun"

	"github.com/roosthq/roost/internal/fault"
)

// Instant is a time as rows hold it: microseconds since 1970, 0 = never.
type Instant int64

// At makes an Instant; a zero time gives never.
func At(t time.Time) Instant {
	if t.IsZero() {
		return 0
	}
	return Instant(t.UnixMicro())
}

// Time gives the zero time for never.
func (i Instant) Time() time.Time {
	if i == 0 {
		return time.Time{}
	}
	return time.UnixMicro(int64(i)).UTC()
}

// State of a sandbox; internal/control/sandbox has the transitions.
type State string

// The states, as the API names them.
const (
	Creating State = "creating"
	Running  State = "running"
	Pausing  State = "pausing"
	Paused   State = "paused"
	Resuming State = "resuming"
	Failed   State = "failed"
	Lost     State = "lost"
	Deleting State = "deleting"
	Deleted  State = "deleted"
)

// Phase is one timed step of the last change.
type Phase struct {
	Name         string `json:"name"`
	Microseconds int64  `json:"us"`
}

// Sandbox is one row of sandboxes.
type Sandbox struct {
	bun.BaseModel `bun:"table:sandboxes,alias:s"`

	ID              string            `bun:"id,pk"`
	HostID          string            `bun:"host_id"`
	State           State             `bun:"state"`
	Reason          string            `bun:"reason"`
	Template        string            `bun:"template"`
	TemplateID      string            `bun:"template_id"`
	ForkedFrom      string            `bun:"forked_from"`
	Runtime         string            `bun:"runtime"`
	Isolation       string            `bun:"isolation"`
	VCPUs           int               `bun:"vcpus"`
	MemoryMB        int               `bun:"memory_mb"`
	DiskSizeMB      int               `bun:"disk_size_mb"`
	IdleTimeoutS    int               `bun:"idle_timeout_s"`
	Metadata        map[string]string `bun:"metadata,type:text"`
	Phases          []Phase           `bun:"phases,type:text"`
	DiskUsedBytes   int64             `bun:"disk_used_bytes"`
	MemoryUsedBytes int64             `bun:"memory_used_bytes"`
	// Generation is the agent's count of changes; 1 until it has answered.
	Generation int64 `bun:"generation"`
	// Version counts writes of this row.
	Version       int64   `bun:"version"`
	ClaimID       string  `bun:"claim_id"`
	ClaimDeadline Instant `bun:"claim_deadline"`
	CreatedAt     Instant `bun:"created_at"`
	ActiveAt      Instant `bun:"active_at"`
	DeletedAt     Instant `bun:"deleted_at"`
}

// Claimed says that an operation owns the row at now.
func (s *Sandbox) Claimed(now time.Time) bool {
	return s.ClaimID != "" && s.ClaimDeadline > At(now)
}

// Copy is a row to change and give to Swap; maps and slices are shared and must be replaced
// whole.
func (s *Sandbox) Copy() *Sandbox {
	c := *s
	return &c
}

// Sandbox reads one row.
func (s *Store) Sandbox(ctx context.Context, id string) (*Sandbox, error) {
	row := new(Sandbox)
	err := s.read.NewSelect().Model(row).Where("s.id = ?", id).Scan(ctx)
	if err != nil {
		return nil, notFound(err, "find", "sandbox "+id)
	}
	return row, nil
}

// Cursor is a place in the newest-first order: after the row of that time and id.
type Cursor struct {
	CreatedAt Instant
	ID        string
}

// Filter chooses rows of a list. An empty State means every state but deleted.
type Filter struct {
	State State
	After *Cursor
	Limit int
}

// Sandboxes lists rows, newest first.
func (s *Store) Sandboxes(ctx context.Context, f Filter) ([]*Sandbox, error) {
	var rows []*Sandbox
	q := s.read.NewSelect().Model(&rows).OrderExpr("s.created_at DESC, s.id DESC")
	if f.State == "" {
		q.Where("s.state <> ?", Deleted)
	} else {
		q.Where("s.state = ?", f.State)
	}
	if f.After != nil {
		q.Where("(s.created_at < ? OR (s.created_at = ? AND s.id < ?))",
			f.After.CreatedAt, f.After.CreatedAt, f.After.ID)
	}
	if f.Limit > 0 {
		q.Limit(int64(f.Limit))
	}
	if err := q.Scan(ctx); err != nil {
		return nil, fault.Wrap(err, "list", "sandboxes")
	}
	return rows, nil
}

// Swap is a change of one row: Seen as it was read, Next as it shall be.
type Swap struct {
	Seen, Next *Sandbox
}

// Swap replaces a row when it still is as it was seen, and says whether it did. Next gets
// the new version.
func (s *Store) Swap(ctx context.Context, seen, next *Sandbox) (bool, error) {
	done, err := s.SwapAll(ctx, []Swap{{seen, next}})
	return done == 1, err
}

// SwapAll makes many independent swaps in one transaction (one sync of the disk) and says
// how many rows still were as seen.
func (s *Store) SwapAll(ctx context.Context, swaps []Swap) (done int, err error) {
	err = s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		done = 0
		for _, sw := range swaps {
			ok, err := swapRow(ctx, tx, sw)
			if err != nil {
				return fault.Wrap(err, "update", "sandbox "+sw.Seen.ID)
			}
			if ok {
				done++
			}
		}
		return nil
	})
	return done, err
}

func swapRow(ctx context.Context, tx bun.Tx, sw Swap) (bool, error) {
	sw.Next.Version = sw.Seen.Version + 1
	return affected(tx.NewUpdate().Model(sw.Next).
		ExcludeColumn("id", "host_id", "created_at", "template_id", "forked_from").
		Where("id = ?", sw.Seen.ID).
		Where("state = ?", sw.Seen.State).
		Where("generation = ?", sw.Seen.Generation).
		Where("version = ?", sw.Seen.Version).
		Exec(ctx))
}

// PurgeSandboxes drops rows that were deleted before a time, and says how many.
func (s *Store) PurgeSandboxes(ctx context.Context, before time.Time) (int, error) {
	var n int64
	err := s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		res, err := tx.NewDelete().Model((*Sandbox)(nil)).
			Where("state = ?", Deleted).Where("deleted_at < ?", At(before)).Exec(ctx)
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	return int(n), fault.Wrap(err, "purge", "deleted sandboxes")
}

// AddSandboxes inserts rows, all of them or none.
func (s *Store) AddSandboxes(ctx context.Context, rows []*Sandbox) error {
	err := s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		for _, row := range rows {
			if _, err := insertSandbox(ctx, tx, row); err != nil {
				return err
			}
		}
		return nil
	})
	return fault.Wrap(err, "add", "sandboxes")
}

// insertSandbox adds a row inside a transaction.
func insertSandbox(ctx context.Context, tx bun.Tx, row *Sandbox) (sql.Result, error) {
	return tx.NewInsert().Model(row).Exec(ctx)
}
