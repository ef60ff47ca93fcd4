// Package fault is the error that Roost shows: what was being done, to what, why it failed,
// of which kind, and what a person can do about it. Kinds are Connect's codes, so that an
// error keeps its kind from the guest through the agent and the control plane to a client.
package fault

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"
)

// Kind is a Connect code. Its String is what the API shows ("not_found").
type Kind = connect.Code

// The kinds in use.
const (
	Canceled           = connect.CodeCanceled
	Invalid            = connect.CodeInvalidArgument
	DeadlineExceeded   = connect.CodeDeadlineExceeded
	NotFound           = connect.CodeNotFound
	AlreadyExists      = connect.CodeAlreadyExists
	PermissionDenied   = connect.CodePermissionDenied
	ResourceExhausted  = connect.CodeResourceExhausted
	FailedPrecondition = connect.CodeFailedPrecondition
	Aborted            = connect.CodeAborted
	Unimplemented      = connect.CodeUnimplemented
	Internal           = connect.CodeInternal
	// DataLoss: what was saved is damaged.
	DataLoss        = connect.CodeDataLoss
	Unavailable     = connect.CodeUnavailable
	Unauthenticated = connect.CodeUnauthenticated
)

// hintHeader carries a hint across RPC.
const hintHeader = "Roost-Hint"

// Error is a failure with a kind. Op and Object read as a phrase: "open", "cow file sb1.cow".
type Error struct {
	Kind   Kind
	Op     string
	Object string
	Err    error
	Hint   string
}

// New makes an Error with a plain cause.
func New(kind Kind, op, object, cause string) *Error {
	return &Error{Kind: kind, Op: op, Object: object, Err: errors.New(cause)}
}

// Wrap gives err an operation and an object, keeping its kind and hint. A nil err gives nil.
func Wrap(err error, op, object string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Op: op, Object: object, Err: err, Hint: HintOf(err)}
}

// WithHint returns e with a hint for the reader.
func (e *Error) WithHint(hint string) *Error {
	e.Hint = hint
	return e
}

func (e *Error) Error() string {
	head := strings.TrimSpace(e.Op + " " + e.Object)
	switch {
	case e.Err == nil:
		return head
	case head == "":
		return e.Err.Error()
	default:
		return head + ": " + e.Err.Error()
	}
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf finds the kind of an error; an error that never had one is Internal.
func KindOf(err error) Kind {
	var f *Error
	var c *connect.Error
	switch {
	case errors.As(err, &f):
		if f.Kind == 0 { // made without one: its cause decides
			return KindOf(f.Err)
		}
		return f.Kind
	case errors.As(err, &c):
		return c.Code()
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	default:
		return Internal
	}
}

// Is reports whether err has the kind.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }

// HintOf finds the hint nearest to the surface of err; of joined errors, the first that has one.
func HintOf(err error) string {
	//nolint:errorlint // walks the tree itself, where errors.As would stop at the first Error
	switch e := err.(type) {
	case nil:
		return ""
	case *Error:
		if e.Hint != "" {
			return e.Hint
		}
		return HintOf(e.Err)
	case *connect.Error:
		if hint := e.Meta().Get(hintHeader); hint != "" {
			return hint
		}
		return HintOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, one := range e.Unwrap() {
			if hint := HintOf(one); hint != "" {
				return hint
			}
		}
		return ""
	default:
		return HintOf(errors.Unwrap(err))
	}
}

// ToConnect puts err on the wire, hint included.
func ToConnect(err error) error {
	if err == nil {
		return nil
	}
	var c *connect.Error
	if errors.As(err, &c) && errors.Unwrap(err) == nil {
		return err
	}
	out := connect.NewError(KindOf(err), errors.New(Message(err)))
	if hint := HintOf(err); hint != "" {
		out.Meta().Set(hintHeader, hint)
	}
	return out
}

// FromConnect takes err off the wire: an Error with the remote's kind, message and hint.
func FromConnect(err error) error {
	if err == nil {
		return nil
	}
	var c *connect.Error
	if !errors.As(err, &c) {
		return err
	}
	return &Error{Kind: c.Code(), Err: errors.New(c.Message()), Hint: c.Meta().Get(hintHeader)}
}

// Message is err's text without the code prefix that a connect.Error adds.
func Message(err error) string {
	var c *connect.Error
	if errors.As(err, &c) {
		return strings.ReplaceAll(err.Error(), c.Error(), c.Message())
	}
	return err.Error()
}
