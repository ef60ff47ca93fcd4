package store

import (
	"context"
	"time"

	"github.com/uptrace/bun"

	"github.com/roosthq/roost/internal/fault"
)

// APIKey is one row of api_keys. The secret itself is nowhere.
type APIKey struct {
	bun.BaseModel `bun:"table:api_keys,alias:k"`

	ID         string  `bun:"id,pk"`
	Name       string  `bun:"name"`
	Prefix     string  `bun:"prefix"`
	Hash       string  `bun:"hash"`
	CreatedAt  Instant `bun:"created_at"`
	LastUsedAt Instant `bun:"last_used_at"`
}

// AddAPIKey inserts a key.
func (s *Store) AddAPIKey(ctx context.Context, key *APIKey) error {
	_, err := s.write.NewInsert().Model(key).Exec(ctx)
	return fault.Wrap(err, "add", "api key "+key.Name)
}

// AddFirstAPIKey inserts a key when there is none at all, and says whether it did.
func (s *Store) AddFirstAPIKey(ctx context.Context, key *APIKey) (added bool, err error) {
	err = s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		any, err := tx.NewSelect().Model((*APIKey)(nil)).Exists(ctx)
		if err != nil || any {
			return err
		}
		added = true
		_, err = tx.NewInsert().Model(key).Exec(ctx)
		return err
	})
	return added, fault.Wrap(err, "add", "first api key")
}

// APIKeyByHash finds a key by the hash of its secret.
func (s *Store) APIKeyByHash(ctx context.Context, hash string) (*APIKey, error) {
	key := new(APIKey)
	if err := s.read.NewSelect().Model(key).Where("k.hash = ?", hash).Scan(ctx); err != nil {
		return nil, notFound(err, "find", "api key")
	}
	return key, nil
}

// APIKeys lists keys, oldest first.
func (s *Store) APIKeys(ctx context.Context) ([]*APIKey, error) {
	var keys []*APIKey
	err := s.read.NewSelect().Model(&keys).OrderExpr("k.created_at, k.id").Scan(ctx)
	return keys, fault.Wrap(err, "list", "api keys")
}

// TouchAPIKey records a use, unless one no older than the last minute is recorded.
func (s *Store) TouchAPIKey(ctx context.Context, id string, now time.Time) error {
	_, err := s.write.NewUpdate().Model((*APIKey)(nil)).
		Set("last_used_at = ?", At(now)).
		Where("id = ?", id).Where("last_used_at < ?", At(now.Add(-time.Minute))).Exec(ctx)
	return fault.Wrap(err, "record use of", "api key "+id)
}

// RemoveAPIKey deletes a key, never the last one: nobody could get in to make another.
func (s *Store) RemoveAPIKey(ctx context.Context, id string) error {
	return s.write.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		n, err := tx.NewSelect().Model((*APIKey)(nil)).Count(ctx)
		if err != nil {
			return fault.Wrap(err, "count", "api keys")
		}
		exists, err := tx.NewSelect().Model((*APIKey)(nil)).Where("k.id = ?", id).Exists(ctx)
		switch {
		case err != nil:
			return fault.Wrap(err, "find", "api key "+id)
		case !exists:
			return fault.New(fault.NotFound, "revoke", "api key "+id, "there is none of that id").
				WithHint("list them: GET /v1/api-keys")
		case n == 1:
			return fault.New(fault.FailedPrecondition, "revoke", "api key "+id, "it is the last one").
				WithHint("make another key first")
		}
		_, err = tx.NewDelete().Model((*APIKey)(nil)).Where("id = ?", id).Exec(ctx)
		return fault.Wrap(err, "revoke", "api key "+id)
	})
}
