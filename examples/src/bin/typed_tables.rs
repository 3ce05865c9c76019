//! A small shop on typed tables: orders with an index, products whose names are unique, and counters.
//!
//! `cargo run -p steadfast-examples --bin typed_tables`

use std::cmp::Reverse;
use std::error::Error;

use serde::{Deserialize, Serialize};
use steadfast::table::{Counters, Index, Table, TableError};
use steadfast::{ConsistencyPolicy, ReplicatedEnvironment, WriteError};

#[derive(Debug, Serialize, Deserialize)]
struct Product {
    name: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    customer: String,
    product: u32,
    cents: u64,
}

#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("there is no product {0}")]
    NoSuchProduct(u32),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// All that the shop stores.
struct Shop {
    products: Table<u32, Product>,
    by_name: Index<u32, String>,
    orders: Table<u64, Order>,
    /// The newest order of a customer first.
    by_customer: Index<u64, (String, Reverse<u64>)>,
    sold: Counters<u32>,
}

impl Shop {
    fn new() -> Self {
        let mut products = Table::new("products");
        let mut orders = Table::new("orders");
        Self {
            by_name: products.unique_index("name", |_, product: &Product| [product.name.clone()]),
            products,
            by_customer: orders.index("customer", |number, order: &Order| {
                [(order.customer.clone(), Reverse(*number))]
            }),
            orders,
            sold: Counters::count("sold"),
        }
    }

    fn offer(&self, env: &ReplicatedEnvironment, id: u32, name: &str) -> Result<(), TableError> {
        let product = Product {
            name: name.to_owned(),
        };
        env.write(|txn| self.products.of(txn)?.put(&id, &product))?;
        Ok(())
    }

    /// An order, and one more sold of its product: both or neither.
    fn order(
        &self,
        env: &ReplicatedEnvironment,
        number: u64,
        order: &Order,
    ) -> Result<(), OrderError> {
        env.write(|txn| {
            if !self.products.of(txn)?.contains(&order.product)? {
                return Err(OrderError::NoSuchProduct(order.product));
            }
            self.orders.of(txn)?.put(&number, order)?;
            Ok(self.sold.of(txn)?.add(&order.product, 1)?)
        })?;
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let group = ReplicatedEnvironment::in_memory_group(1)?;
    let (env, shop) = (&group[0], Shop::new());

    shop.offer(env, 1, "tea")?;
    shop.offer(env, 2, "scones")?;
    match shop.offer(env, 3, "tea") {
        Err(error @ TableError::NotUnique { .. }) => println!("refused: {error}"),
        other => return Err(format!("there are two teas now: {other:?}").into()),
    }

    for (number, customer, product, cents) in
        [(1, "ada", 1, 250), (2, "bob", 1, 250), (3, "ada", 2, 400)]
    {
        let order = Order {
            customer: customer.to_owned(),
            product,
            cents,
        };
        shop.order(env, number, &order)?;
    }

    let (paid, teas) = env.read(
        ConsistencyPolicy::Linearizable,
        |snapshot| -> Result<_, TableError> {
            let orders = shop.orders.of(snapshot)?;
            let mut paid = 0;
            for row in orders.by(&shop.by_customer)?.prefix(&("ada".to_owned(),)) {
                let (_, number, order) = row?;
                println!("ada's order {number}: {order:?}");
                paid += order.cents;
            }
            let products = shop.products.of(snapshot)?;
            let tea = products.by(&shop.by_name)?.get("tea")?;
            let sold = tea.map(|(id, _)| shop.sold.of(snapshot)?.get(&id));
            Ok((paid, sold.transpose()?.flatten()))
        },
    )?;
    println!("ada paid {paid} cents; {teas:?} teas were sold");
    if (paid, teas) != (650, Some(2)) {
        return Err("the shop has lost count".into());
    }

    let report = shop.orders.verify(env, ConsistencyPolicy::Linearizable)?;
    println!(
        "{} orders and {} rows of their index: {:?}",
        report.rows, report.index_rows, report.findings
    );
    if !report.is_clean() {
        return Err("the index does not agree with the orders".into());
    }
    env.close()?;
    Ok(())
}
