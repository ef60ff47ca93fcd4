// Package identity is which sandbox this is: its tokens, environment, default user and
// generation. It changes only in Restore.
package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"maps"
	"sync"
)

// Life is one run of a sandbox, from a Restore to the next.
type Life struct {
	SandboxID   string
	Generation  uint64
	AccessToken string
	Envs        map[string]string
	DefaultUser string
}

// Identity holds the current life. Make it with New.
type Identity struct {
	mu       sync.RWMutex
	life     Life
	restored bool
	control  string
	previous string // the control token before the last Restore, until the Thaw
}

// New makes the identity of a guest that was never restored: no access token opens it.
func New(controlToken, defaultUser string, envs map[string]string) *Identity {
	return &Identity{control: controlToken, life: Life{DefaultUser: defaultUser, Envs: envs}}
}

// Access reports whether token is the access token.
func (i *Identity) Access(token string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.restored && same(token, i.life.AccessToken)
}

// Control reports whether token is the control token.
func (i *Identity) Control(token string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return same(token, i.control)
}

// Superseded reports whether token is the control token that the last Restore replaced, and
// no Thaw has followed. It may only repeat that Restore: the answer may have been lost.
func (i *Identity) Superseded(token string) bool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return same(token, i.previous)
}

// Current returns the life and whether there was a Restore.
func (i *Identity) Current() (Life, bool) {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.life, i.restored
}

// Envs returns a copy of the environment.
func (i *Identity) Envs() map[string]string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return maps.Clone(i.life.Envs)
}

// DefaultUser is who acts when a request names nobody.
func (i *Identity) DefaultUser() string {
	i.mu.RLock()
	defer i.mu.RUnlock()
	return i.life.DefaultUser
}

// Begin starts a life.
func (i *Identity) Begin(life Life, controlToken string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if life.DefaultUser == "" {
		life.DefaultUser = i.life.DefaultUser
	}
	i.previous, i.control = i.control, controlToken
	i.life, i.restored = life, true
}

// Thawed ends the time in which the superseded control token may repeat the Restore.
func (i *Identity) Thawed() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.previous = ""
}

// same compares in constant time; nothing equals an empty secret.
func same(token, secret string) bool {
	if secret == "" {
		return false
	}
	a, b := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Revoke ends the current life before the next begins: until then no access token works.
func (i *Identity) Revoke() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.restored, i.life.AccessToken = false, ""
}
