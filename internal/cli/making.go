package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/fault"
)

// madeEvent is a line of any answer that streams: progress, and at last what was made or why
// it was not.
type madeEvent struct {
	Progress *v1.Progress `json:"progress"`
	Error    *v1.Error    `json:"error"`
	Sandbox  *v1.Sandbox  `json:"sandbox"`
	Template *v1.Template `json:"template"`
}

// making follows the stream of a request that makes a T.
type making[T any] struct {
	// what is being made, and where to look when the stream breaks off.
	what, look string
	take       func(madeEvent) *T
}

func acceptStream(_ context.Context, req *http.Request) error {
	req.Header.Set("Accept", "application/x-ndjson, application/json;q=0.9")
	return nil
}

// made follows the answer to what was made. A server may answer plain JSON too.
func (m making[T]) made(resp *http.Response, err error) func(progress *busy) (T, error) {
	return func(progress *busy) (T, error) {
		var out T
		body, err := content(resp, err)
		if err != nil {
			return out, err
		}
		defer func() { _ = body.Close() }()
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-ndjson") {
			return m.follow(body, progress)
		}
		if err := json.NewDecoder(body).Decode(&out); err != nil {
			return out, notRoost("read the answer: " + err.Error())
		}
		return out, nil
	}
}

func (m making[T]) follow(body io.Reader, progress *busy) (T, error) {
	var none T
	dec := json.NewDecoder(bufio.NewReader(body))
	for {
		var event madeEvent
		if err := dec.Decode(&event); err != nil {
			return none, fault.New(fault.Unavailable, "", "", "the connection ended before "+m.what+" was ready: "+err.Error()).WithHint(m.look)
		}
		if event.Error != nil {
			return none, fromAPI(*event.Error)
		}
		if made := m.take(event); made != nil {
			return *made, nil
		}
		if event.Progress != nil {
			progress.step(strings.TrimSpace(event.Progress.Step + " " + text(event.Progress.Detail)))
		}
	}
}
