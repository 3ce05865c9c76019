//! Users and roles.

use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use tonic::{Request, Response, Status};

use crate::auth::Caller;
use crate::auth::state::{ROOT, State};
use crate::error::Error;
use crate::etcd::{Node, Services};
use crate::proto::authpb::Permission;
use crate::proto::authpb::permission::Type;
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse,
    AuthRoleAddRequest, AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest,
    AuthRoleGrantPermissionResponse, AuthRoleListRequest, AuthRoleListResponse,
    AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse, AuthStatusRequest,
    AuthStatusResponse, AuthUserAddRequest, AuthUserAddResponse, AuthUserChangePasswordRequest,
    AuthUserChangePasswordResponse, AuthUserDeleteRequest, AuthUserDeleteResponse,
    AuthUserGetRequest, AuthUserGetResponse, AuthUserGrantRoleRequest, AuthUserGrantRoleResponse,
    AuthUserListRequest, AuthUserListResponse, AuthUserRevokeRoleRequest,
    AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse, ResponseHeader,
};

/// Bytes of the key that tokens are signed with.
const KEY_BYTES: usize = 32;

/// Bytes of the name of a user or a role.
const NAME_MAX: usize = 256;

impl Node {
    /// Changes users or roles, and gives the header of the answer.
    async fn change_auth<T>(
        &self,
        request: &Request<T>,
        change: impl Fn(&mut State) -> Result<(), Error> + Send,
    ) -> Result<Option<ResponseHeader>, Status> {
        let access = self.access(&Caller::of(request)).await?;
        access.admin()?;
        self.auth.change(access, change).await?;
        Ok(Some(self.header()))
    }

    /// Users and roles as of now.
    async fn users(&self) -> Result<(State, Option<ResponseHeader>), Status> {
        let state = self.auth.newest().await?;
        Ok((state, Some(self.header())))
    }
}

fn named(name: &str) -> Result<(), Error> {
    (name.len() <= NAME_MAX)
        .then_some(())
        .ok_or(Error::InvalidAuthManagement)
}

#[tonic::async_trait]
impl Auth for Services {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let mut key = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| Status::internal("the system gives no random bytes"))?;
        let key = Bytes::copy_from_slice(&key);
        let enable = move |state: &mut State| {
            if state.enabled {
                Ok(())
            } else {
                state.enable(key.clone())
            }
        };
        let header = self.0.change_auth(&request, enable).await?;
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let disable = |state: &mut State| {
            state.enabled = false;
            state.key.clear();
            Ok(())
        };
        let header = self.0.change_auth(&request, disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        _request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let (state, header) = self.0.users().await?;
        Ok(Response::new(AuthStatusResponse {
            header,
            enabled: state.enabled,
            auth_revision: state.revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let AuthenticateRequest { name, password } = request.into_inner();
        let token = self.0.auth.authenticate(&name, password).await?;
        let header = Some(self.0.header());
        Ok(Response::new(AuthenticateResponse { header, token }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        self.0.access(&Caller::of(&request)).await?.admin()?;
        let add = request.get_ref();
        named(&add.name)?;
        if add.name.is_empty() {
            return Err(Error::UserEmpty.into());
        }
        let hash = match &add.options {
            Some(options) if options.no_password => String::new(),
            _ => self.0.auth.passwords.hash(add.password.clone()).await?,
        };
        let name = add.name.clone();
        let add = move |state: &mut State| state.add_user(&name, hash.clone());
        let header = self.0.change_auth(&request, add).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        let name = request.into_inner().name;
        if access.user_name() != Some(&*name) {
            access.admin()?;
        }
        let (state, header) = self.0.users().await?;
        let user = state.user(&name).ok_or(Error::UserNotFound)?;
        let roles = user.roles.clone();
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        self.0.access(&Caller::of(&request)).await?.admin()?;
        let (state, header) = self.0.users().await?;
        let users = state.users.into_iter().map(|user| user.name).collect();
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let name = request.get_ref().name.clone();
        let delete = move |state: &mut State| state.delete_user(&name);
        let header = self.0.change_auth(&request, delete).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        self.0.access(&Caller::of(&request)).await?.admin()?;
        let change = request.get_ref();
        let hash = self.0.auth.passwords.hash(change.password.clone()).await?;
        let name = change.name.clone();
        let change = move |state: &mut State| state.change_password(&name, hash.clone());
        let header = self.0.change_auth(&request, change).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let AuthUserGrantRoleRequest { user, role } = request.get_ref().clone();
        let grant = move |state: &mut State| state.grant_role(&user, &role);
        let header = self.0.change_auth(&request, grant).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let AuthUserRevokeRoleRequest { name, role } = request.get_ref().clone();
        let revoke = move |state: &mut State| state.revoke_role(&name, &role);
        let header = self.0.change_auth(&request, revoke).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let name = request.get_ref().name.clone();
        named(&name)?;
        let add = move |state: &mut State| state.add_role(&name);
        let header = self.0.change_auth(&request, add).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let access = self.0.access(&Caller::of(&request)).await?;
        let name = request.into_inner().role;
        let user = access
            .user_name()
            .and_then(|name| access.state().user(name));
        if !user.is_some_and(|user| user.roles.contains(&name)) {
            access.admin()?;
        }
        let (state, header) = self.0.users().await?;
        let perm = match state.role(&name) {
            Some(_) if name == ROOT => vec![everything()],
            Some(role) => role.permissions.clone(),
            None => return Err(Error::RoleNotFound.into()),
        };
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        self.0.access(&Caller::of(&request)).await?.admin()?;
        let (state, header) = self.0.users().await?;
        let roles = state.roles.into_iter().map(|role| role.name).collect();
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let name = request.get_ref().role.clone();
        let delete = move |state: &mut State| state.delete_role(&name);
        let header = self.0.change_auth(&request, delete).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let AuthRoleGrantPermissionRequest { name, perm } = request.get_ref().clone();
        let grant = move |state: &mut State| state.grant_permission(&name, perm.clone());
        let header = self.0.change_auth(&request, grant).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let revoke = request.get_ref().clone();
        let revoke = move |state: &mut State| {
            state.revoke_permission(&revoke.role, &revoke.key, &revoke.range_end)
        };
        let header = self.0.change_auth(&request, revoke).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}

/// What the role of root may do.
fn everything() -> Permission {
    Permission {
        perm_type: Type::Readwrite.into(),
        key: Bytes::new(),
        range_end: Bytes::from_static(&[0]),
    }
}
