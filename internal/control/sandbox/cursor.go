package sandbox

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"github.com/roosthq/roost/internal/control/store"
)

// formatCursor names a place in a list: opaque to callers.
func formatCursor(row *store.Sandbox) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d.%s", row.CreatedAt, row.ID))
}

func parseCursor(cursor string) (*store.Cursor, error) {
	if cursor == "" {
		return nil, nil
	}
	bad := invalid("cursor", fmt.Sprintf("%q", clip(cursor)), "must be the next_cursor of the page before")
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return nil, bad
	}
	at, id, found := strings.Cut(string(raw), ".")
	n, err := strconv.ParseInt(at, 10, 64)
	if !found || err != nil || checkID(id) != nil {
		return nil, bad
	}
	return &store.Cursor{CreatedAt: store.Instant(n), ID: id}, nil
}
