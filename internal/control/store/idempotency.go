package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/uptrace/bun"

	"github.com/roosthq/roost/internal/fault"
)

// Idempotency binds a client's key to the sandbox that its first request made.
type Idempotency struct {
	bun.BaseModel `bun:"table:idempotency_keys,alias:i"`

	APIKeyID    string  `bun:"api_key_id,pk"`
	Key         string  `bun:"idem_key,pk"`
	RequestHash string  `bun:"request_hash"`
	SandboxID   string  `bun:"sandbox_id"`
	CreatedAt   Instant `bun:"created_at"`
}

// AddSandbox inserts a sandbox. With idem, the key is bound in the same transaction; when it
// is bound already (and that no earlier than since), nothing is inserted and the earlier
// binding is returned.
func (s *Store) AddSandbox(ctx context.Context, row *Sandbox, idem *Idempotency, since time.Time) (*Idempotency, error) {
	var earlier *Idempotency
	err := s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		var err error
		if idem != nil {
			if earlier, err = findIdempotency(ctx, tx, idem, since); err != nil || earlier != nil {
				return err
			}
		}
		if _, err = insertSandbox(ctx, tx, row); err != nil || idem == nil {
			return err
		}
		_, err = tx.NewInsert().Model(idem).Exec(ctx)
		return err
	})
	return earlier, fault.Wrap(err, "add", "sandbox "+row.ID)
}

// findIdempotency looks for a live binding and drops one that is too old.
func findIdempotency(ctx context.Context, tx bun.Tx, idem *Idempotency, since time.Time) (*Idempotency, error) {
	found := new(Idempotency)
	err := tx.NewSelect().Model(found).
		Where("i.api_key_id = ?", idem.APIKeyID).Where("i.idem_key = ?", idem.Key).Scan(ctx)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, err
	case found.CreatedAt >= At(since):
		return found, nil
	}
	_, err = tx.NewDelete().Model(found).WherePK().Exec(ctx)
	return nil, err
}

// ForgetIdempotency unbinds the keys of a sandbox that never came to be, so that a repeated
// request tries again.
func (s *Store) ForgetIdempotency(ctx context.Context, sandboxID string) error {
	_, err := s.write.NewDelete().Model((*Idempotency)(nil)).Where("sandbox_id = ?", sandboxID).Exec(ctx)
	return fault.Wrap(err, "forget idempotency key of", "sandbox "+sandboxID)
}

// PurgeIdempotency drops bindings made before a time.
func (s *Store) PurgeIdempotency(ctx context.Context, before time.Time) error {
	_, err := s.write.NewDelete().Model((*Idempotency)(nil)).Where("created_at < ?", At(before)).Exec(ctx)
	return fault.Wrap(err, "purge", "idempotency keys")
}
