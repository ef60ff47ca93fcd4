package api

import (
	"context"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// GetHost describes the host.
func (a *API) GetHost(ctx context.Context, _ v1.GetHostRequestObject) (v1.GetHostResponseObject, error) {
	h, err := a.hosts.Get(ctx)
	if err != nil {
		return nil, err
	}
	return v1.GetHost200JSONResponse(hostOf(h)), nil
}

// ListTemplates lists templates.
func (a *API) ListTemplates(ctx context.Context, _ v1.ListTemplatesRequestObject) (v1.ListTemplatesResponseObject, error) {
	list, err := a.templates.List(ctx)
	if err != nil {
		return nil, err
	}
	out := v1.ListTemplates200JSONResponse{Templates: make([]v1.Template, len(list))}
	for i, t := range list {
		out.Templates[i] = templateOf(t)
	}
	return out, nil
}

// GetTemplate gives one template.
func (a *API) GetTemplate(ctx context.Context, r v1.GetTemplateRequestObject) (v1.GetTemplateResponseObject, error) {
	t, err := a.templates.Get(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	return v1.GetTemplate200JSONResponse(templateOf(t)), nil
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
