// Package apikey makes and checks API keys: `roost_` and 40 hex digits. Only the SHA-256 of
// a key is stored (160 random bits need no slow hash), with its first characters to tell
// keys apart. The secret is shown once, when it is made.
package apikey

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

const (
	secretPrefix = "roost_"
	secretBytes  = 20
	shownChars   = len(secretPrefix) + 6
	maxName      = 100
	// touchEvery bounds how often a use is written.
	touchEvery = time.Minute
)

var secretShape = regexp.MustCompile(`^roost_[0-9a-f]{40}$`)

// Key is a row, as the service gives it to handlers.
type Key = store.APIKey

// Service makes, lists, revokes and checks keys.
type Service struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time
}

// New makes a Service.
func New(s *store.Store, log *slog.Logger, now func() time.Time) *Service {
	return &Service{store: s, log: log, now: now}
}

// Create makes a key and returns it with its secret.
func (s *Service) Create(ctx context.Context, name string) (*store.APIKey, string, error) {
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName || strings.TrimSpace(name) == "" {
		return nil, "", fault.New(fault.Invalid, "make", "api key",
			fmt.Sprintf("name %.120q has %d characters, must have 1 to %d", name, n, maxName))
	}
	key, secret := s.generate(name)
	if err := s.store.AddAPIKey(ctx, key); err != nil {
		return nil, "", err
	}
	return key, secret, nil
}

// First makes a key when there is none at all; otherwise the secret is empty.
func (s *Service) First(ctx context.Context) (string, error) {
	key, secret := s.generate("first")
	added, err := s.store.AddFirstAPIKey(ctx, key)
	if err != nil || !added {
		return "", err
	}
	return secret, nil
}

func (s *Service) generate(name string) (*store.APIKey, string) {
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // never fails
	secret := secretPrefix + hex.EncodeToString(raw)
	return &store.APIKey{
		ID: strings.ToLower(rand.Text())[:20], Name: name, Prefix: secret[:shownChars],
		Hash: hash(secret), CreatedAt: store.At(s.now()),
	}, secret
}

// List returns all keys.
func (s *Service) List(ctx context.Context) ([]*store.APIKey, error) { return s.store.APIKeys(ctx) }

// Revoke deletes a key.
func (s *Service) Revoke(ctx context.Context, id string) error { return s.store.RemoveAPIKey(ctx, id) }

// Authenticate finds the key of a secret. The lookup is by hash, so its timing tells
// nothing about stored secrets; the comparison after it is constant-time all the same.
func (s *Service) Authenticate(ctx context.Context, secret string) (*store.APIKey, error) {
	if secret == "" {
		return nil, refuse("no API key was given")
	}
	if !secretShape.MatchString(secret) {
		return nil, refuse("the API key is malformed")
	}
	sum := hash(secret)
	key, err := s.store.APIKeyByHash(ctx, sum)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil, refuse("the API key is unknown or revoked")
	case err != nil:
		return nil, err
	case subtle.ConstantTimeCompare([]byte(sum), []byte(key.Hash)) != 1:
		return nil, refuse("the API key is unknown or revoked")
	}
	s.touch(ctx, key)
	return key, nil
}

// touch is for people who read the list; a failure must not refuse the request.
func (s *Service) touch(ctx context.Context, key *store.APIKey) {
	now := s.now()
	if now.Sub(key.LastUsedAt.Time()) < touchEvery {
		return
	}
	if err := s.store.TouchAPIKey(ctx, key.ID, now); err != nil && ctx.Err() == nil {
		s.log.Warn("use of api key not recorded", "api_key_id", key.ID, "error", err)
	}
}

func refuse(cause string) error {
	return fault.New(fault.Unauthenticated, "", "", cause).
		WithHint("send X-API-Key: roost_… or Authorization: Bearer roost_…")
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}
