package store

import (
	"context"

	"github.com/uptrace/bun"

	"github.com/roosthq/roost/internal/fault"
)

// Host is one row of hosts.
type Host struct {
	bun.BaseModel `bun:"table:hosts,alias:h"`

	ID        string  `bun:"id,pk"`
	Hostname  string  `bun:"hostname"`
	CreatedAt Instant `bun:"created_at"`
	SeenAt    Instant `bun:"seen_at"`
}

// PutHost inserts a host, or records its name and when it was seen.
func (s *Store) PutHost(ctx context.Context, h *Host) error {
	_, err := s.write.NewInsert().Model(h).
		On("CONFLICT (id) DO UPDATE").
		Set("hostname = EXCLUDED.hostname").Set("seen_at = EXCLUDED.seen_at").Exec(ctx)
	return fault.Wrap(err, "record", "host "+h.ID)
}

// Host reads one row.
func (s *Store) Host(ctx context.Context, id string) (*Host, error) {
	h := new(Host)
	if err := s.read.NewSelect().Model(h).Where("h.id = ?", id).Scan(ctx); err != nil {
		return nil, notFound(err, "find", "host "+id)
	}
	return h, nil
}
