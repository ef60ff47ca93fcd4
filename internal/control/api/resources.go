package api

import (
	"context"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/leak"
)

// GetHost describes the host.
func (a *API) GetHost(ctx context.Context, _ v1.GetHostRequestObject) (v1.GetHostResponseObject, error) {
	h, err := a.hosts.Get(ctx)
	if err != nil {
		return nil, err
	}
	return v1.GetHost200JSONResponse(hostOf(h)), nil
}

// ListLeaks says what exists on the host and belongs to nobody.
func (a *API) ListLeaks(ctx context.Context, _ v1.ListLeaksRequestObject) (v1.ListLeaksResponseObject, error) {
	found, err := a.leaks.List(ctx, leak.Look)
	if err != nil {
		return nil, err
	}
	return v1.ListLeaks200JSONResponse(leaksOf(found)), nil
}

// RemoveLeaks removes what belongs to nobody.
func (a *API) RemoveLeaks(ctx context.Context, r v1.RemoveLeaksRequestObject) (v1.RemoveLeaksResponseObject, error) {
	fix := leak.Debris
	if or(r.Params.WithData, false) {
		fix = leak.Everything
	}
	found, err := a.leaks.List(ctx, fix)
	if err != nil {
		return nil, err
	}
	return v1.RemoveLeaks200JSONResponse(leaksOf(found)), nil
}

// ListAPIKeys lists keys.
func (a *API) ListAPIKeys(ctx context.Context, _ v1.ListAPIKeysRequestObject) (v1.ListAPIKeysResponseObject, error) {
	keys, err := a.keys.List(ctx)
	if err != nil {
		return nil, err
	}
	out := v1.ListAPIKeys200JSONResponse{ApiKeys: make([]v1.APIKey, len(keys))}
	for i, k := range keys {
		out.ApiKeys[i] = keyOf(k)
	}
	return out, nil
}

// CreateAPIKey makes a key.
func (a *API) CreateAPIKey(ctx context.Context, r v1.CreateAPIKeyRequestObject) (v1.CreateAPIKeyResponseObject, error) {
	key, secret, err := a.keys.Create(ctx, r.Body.Name)
	if err != nil {
		return nil, err
	}
	return v1.CreateAPIKey201JSONResponse{ApiKey: keyOf(key), Secret: secret}, nil
}

// DeleteAPIKey revokes a key.
func (a *API) DeleteAPIKey(ctx context.Context, r v1.DeleteAPIKeyRequestObject) (v1.DeleteAPIKeyResponseObject, error) {
	if err := a.keys.Revoke(ctx, r.KeyId); err != nil {
		return nil, err
	}
	return v1.DeleteAPIKey204Response{}, nil
}
